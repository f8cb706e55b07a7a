"""P-SOUPS (section 5.2): comparisons of six simulated profiles, from the zip of github.com/joeljang/RLPHF.

Raw instructions end in the profile's preference prompt. It is removed and kept as the user's true preference, which a
policy has to learn from the comparisons alone. A held-out prompt is held out for all users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.rows import EQUAL, REPEAT, Convert, DropCounts, Dropped, LoadedData, Row, RowReader
from prlhf.data.splits import split_by_prompt
from prlhf.dataset import Message, Text, prompt_id
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.formats import file_rows
from prlhf.source.raw import Raw, RawRows
from prlhf.source.values import Malformed, column, mapping, text

# The users in the order of their indices, each with a word that only its preference prompt contains.
PROFILES = {
    "P1A": "elementary",
    "P1B": "PhD",
    "P2A": "concise",
    "P2B": "informative",
    "P3A": "witty",
    "P3B": "unfriendly",
}
OPENING = "Generate a response"  # the start of every preference prompt
PROMPTS = "koala_eval_50.json"
ZIP = "https://storage.googleapis.com/personalized-soups/data.zip"
LAYOUT = f"rm_training/P1A.json ... P3B.json and {PROMPTS}"


@data_set("psoups", uses="bad_rows eval_fraction text")
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Read the P-SOUPS comparisons of six users, each with a preference prompt of its own.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or no comparison is left.
    """
    folder = _folder(config.source)
    prompts = read_koala_prompts(folder / PROMPTS)
    drops = DropCounts(EQUAL, REPEAT)
    reader = RowReader(config.bad_rows, drops, progress)
    parts: list[list[Row]] = []
    preferences, unmarked = {}, {}
    for profile, word in PROFILES.items():
        file = _profile_file(folder, profile)
        raw = list(file_rows([file]).rows)
        instructions = _instructions(raw)
        preferences[profile] = preference = find_preference(instructions, word, file)
        unmarked[profile] = sum(preference not in instruction for instruction in instructions)
        convert = _converter(profile, preference, preference if config.text else "")
        found = reader.read(profile, RawRows(len(raw), raw), convert)
        if not found:
            raise PrlhfError(f"no comparison is left in {file}, of {len(raw)} read", "check the file")
        parts.append(found)
    train, held_out = split_by_prompt(take_turns(parts), config.eval_fraction, config.seed)
    trained = {row.user_id for row in train}
    return LoadedData(
        train=train,
        eval=held_out,
        order=[profile for profile in PROFILES if profile in trained],
        source=str(config.source),
        options={"eval_fraction": config.eval_fraction, "text": config.text, "bad_rows": config.bad_rows},
        counts=drops.report(),
        notes={"without_preference_prompt": unmarked},
        warnings=_warnings(train, prompts, unmarked),
        preferences=preferences,
        prompts=prompts,
    )


def find_preference(instructions: Sequence[str], word: str, file: Path) -> str:
    """Return the most frequent ending, from `OPENING` on, that contains `word`; "" if there are no instructions.

    It is read from the file, so that small differences do not matter, and it need not be in every row.

    Raises:
        PrlhfError: no instruction has such an ending.
    """
    endings = (
        instruction[instruction.rfind(OPENING) :].strip() for instruction in instructions if OPENING in instruction
    )
    counts = Counter(ending for ending in endings if word.lower() in ending.lower())
    if instructions and not counts:
        raise PrlhfError(
            f"no 'user_input' of {file} ends in its preference prompt ('{OPENING} ... {word} ...')",
            "check that it is the unzipped file of this profile",
        )
    return counts.most_common(1)[0][0] if counts else ""


def without(instruction: str, preference: str) -> str:
    """Return the instruction without the preference prompt, wherever that is."""
    before, _, after = instruction.rpartition(preference)
    return f"{before.rstrip()} {after.lstrip()}".strip()


def take_turns(parts: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the users' rows in turn, so that the first held-out rows (`eval_limit` of train) are from all users."""
    return [row for turn in zip_longest(*parts) for row in turn if row]


def read_koala_prompts(path: Path) -> list[Text]:
    """Read the 50 Koala prompts of the paper's evaluation.

    Raises:
        PrlhfError: the file cannot be read, or a prompt is missing.
    """
    found: list[Text] = []
    for raw in file_rows([path]).rows:
        try:
            if raw.problem:
                raise Malformed(raw.problem)
            found.append(_said("user", text(column(mapping(raw.value), "prompt"), "prompt")))
        except Malformed as bad:
            raise PrlhfError(f"{raw.location}: {bad}", bad.hint) from bad
    if not found:
        raise PrlhfError(f"{path} holds no prompt", "check the file")
    return found


def _folder(source: str | None) -> Path:
    """The unzipped folder, after a check that no file is missing."""
    if source is None:
        raise PrlhfError(
            f"psoups is not on the hub: it is a zip, {ZIP} (see github.com/joeljang/RLPHF)",
            f"unzip it and run: prlhf prep psoups --source FOLDER --out data/psoups (FOLDER holds {LAYOUT})",
        )
    folder = Path(source)
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise PrlhfError(f"--source {source} {why}", f"give the unzipped folder that holds {LAYOUT}")
    for file in (*(_profile_file(folder, profile) for profile in PROFILES), folder / PROMPTS):
        if not file.is_file():
            raise PrlhfError(f"{source} has no {file.relative_to(folder)}", f"give the folder that holds {LAYOUT}")
    return folder


def _profile_file(folder: Path, profile: str) -> Path:
    return folder / "rm_training" / f"{profile}.json"


def _instructions(rows: list[Raw]) -> list[str]:
    """`user_input` of the rows that have one; RowReader refuses the others."""
    values = (row.value.get("user_input") for row in rows if isinstance(row.value, dict))
    return [value for value in values if isinstance(value, str)]


def _converter(profile: str, preference: str, user_text: str) -> Convert:
    seen: set[tuple[str, str, str]] = set()

    def convert(value: Any, number: int) -> Row:
        row = mapping(value)
        instruction = without(text(column(row, "user_input"), "user_input"), preference)
        if not instruction:
            raise Malformed("'user_input' holds only the preference prompt")
        # Stripped as in most chat templates: texts that differ in outer blanks only are equal.
        chosen, rejected = (text(column(row, name), name).strip() for name in ("completion_a", "completion_b"))
        if chosen == rejected:
            raise Dropped(EQUAL)
        if (instruction, chosen, rejected) in seen:
            raise Dropped(REPEAT)
        seen.add((instruction, chosen, rejected))
        return Row(
            id=f"{profile}-{number}",
            prompt=_said("user", instruction),
            chosen=_said("assistant", chosen),
            rejected=_said("assistant", rejected),
            user_id=profile,
            user_text=user_text,
        )

    return convert


def _said(role: str, content: str) -> list[Message]:
    return [{"role": role, "content": content}]


def _warnings(train: list[Row], prompts: list[Text], unmarked: dict[str, int]) -> list[str]:
    lines = [
        f"{count} rows of {profile} lack its preference prompt: their instructions are kept as they are"
        for profile, count in unmarked.items()
        if count
    ]
    asked = {prompt_id(row.prompt) for row in train}
    if shared := sum(prompt_id(prompt) in asked for prompt in prompts):
        lines.append(f"{shared} of the {len(prompts)} prompts of {PROMPTS} are also in training")
    return lines
