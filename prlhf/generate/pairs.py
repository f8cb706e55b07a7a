"""Which prompts are written for, and for whom: the (prompt, reader) pairs of `prlhf generate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Prepared, Text, prompt_id
from prlhf.errors import PrlhfError, nearest
from prlhf.generate.baselines import Baseline
from prlhf.generate.readers import GROUPS, Reader, names_of
from prlhf.source.formats import BINARY, file_rows, form, local_path
from prlhf.source.messages import text_or_messages
from prlhf.source.raw import Raw
from prlhf.source.streams import MARK, read_all
from prlhf.source.values import Malformed

ROW = 'give rows like {"prompt": "…"}, or a text file with one prompt per line'

Pair = tuple[Text, Reader]


@dataclass(frozen=True)
class Selection:
    """The users asked for, and every pair to write, by prompt in the order of their source, then by user."""

    readers: list[Reader]
    pairs: list[Pair]


def select(known: Mapping[str, Reader], baseline: Baseline, config: GenerateConfig) -> Selection:
    """Find the readers and prompts that `config` asks for among those that are `known`.

    Raises:
        PrlhfError: a user is unknown, a file of prompts cannot be read, or nothing is left to write.
    """
    readers = choose_readers(known, baseline, config)
    return Selection(readers, choose_pairs(readers, baseline, config))


# ---- users ----


def choose_readers(known: Mapping[str, Reader], baseline: Baseline, config: GenerateConfig) -> list[Reader]:
    """The users asked for; unknown ids are refused, or served as the generic user where that is allowed.

    `all` is the seen users and the generic one; where users have prompts of their own, the seen and the unseen users.
    """
    if baseline.generic_only:
        return [known[GENERIC]]
    people = [reader for reader in known.values() if reader.id != GENERIC]
    seen = [reader for reader in people if reader.user_index > 0]
    groups = {
        "all": people if own_prompts(baseline, config) else [*seen, known[GENERIC]],
        "seen": seen,
        "unseen": [reader for reader in people if reader.user_index == 0],
    }
    chosen: dict[str, Reader] = {}
    for name in names_of(config):
        if name not in groups and name not in known and not config.unknown_as_generic:
            hint = nearest(name, [*known, *GROUPS])
            if any("," in user for user in known):
                hint += " (an id with a comma stands in double quotes)"
            raise PrlhfError(f"user '{name}' is unknown to this model", f"{hint} or --unknown-as-generic")
        chosen |= {reader.id: reader for reader in groups.get(name, [known.get(name, Reader(name, 0, ""))])}
    if not chosen:
        raise PrlhfError(
            f"users = '{config.users}' names no user", "use all, seen, unseen, generic, or ids separated by commas"
        )
    return list(chosen.values())


def own_prompts(baseline: Baseline, config: GenerateConfig) -> bool:
    """Whether each user gets prompts of their own, and not every prompt."""
    return config.prompts in ("own", "judging") or (config.prompts == "eval" and baseline.own_prompts)


# ---- prompts ----


def choose_pairs(readers: Sequence[Reader], baseline: Baseline, config: GenerateConfig) -> list[Pair]:
    """Every pair to write, by prompt in the order of their source, then by user.

    Where users have prompts of their own, `max_prompts` holds for each user, and the generic user answers all that are
    left.
    """
    if not own_prompts(baseline, config):
        return [(prompt, reader) for prompt in shared_prompts(baseline.data, config) for reader in readers]
    by_id = {reader.id: reader for reader in readers}
    users_of: dict[str, tuple[Text, list[str]]] = {}
    for prompt, user in _own_prompts(baseline.data, config):
        users_of.setdefault(prompt_id(prompt), (prompt, []))[1].append(user)
    pairs = [(prompt, by_id[u]) for prompt, users in users_of.values() for u in [*users, GENERIC] if u in by_id]
    if not pairs:
        raise PrlhfError(
            f"prompts = {config.prompts} holds no prompt for users = {config.users}", "ask for other users or prompts"
        )
    return pairs


def shared_prompts(data: Prepared | None, config: GenerateConfig) -> list[Text]:
    """Distinct prompts for everyone, in the order of their source."""
    if config.prompts == "eval":
        found = [row.prompt for row in data.eval] if data else []
    else:
        found = read_prompts(Path(config.prompts), config.prompt_column)
    distinct = list({prompt_id(prompt): prompt for prompt in found}.values())
    if not distinct:
        raise PrlhfError(f"prompts = {config.prompts} holds no prompt", "give a file with prompts")
    return distinct[: config.max_prompts]


def _own_prompts(data: Prepared | None, config: GenerateConfig) -> list[tuple[Text, str]]:
    """Distinct (prompt, user id), at most `max_prompts` per user."""
    rows: Iterable[tuple[Text, str]] = ((row.prompt, row.user_id) for row in data.eval) if data else []
    if config.prompts == "judging":
        rows = [(row["prompt"], row["user_id"]) for row in data.judging] if data else []
        if not rows:
            raise PrlhfError(
                "prompts = judging, and the data set has no judging.jsonl", "use --prompts own, or eval, or a file"
            )
    kept, taken = [], Counter[str]()
    for prompt, user in {(prompt_id(prompt), user): (prompt, user) for prompt, user in rows}.values():
        if config.max_prompts is None or taken[user] < config.max_prompts:
            taken[user] += 1
            kept.append((prompt, user))
    return kept


# ---- files of prompts ----


def read_prompts(path: Path, column: str = "prompt") -> list[Text]:
    """Read the prompts of a table's `column`, of a JSON list of prompts, or the lines of a text file.

    Messages are read in the same forms as by `prlhf prep`, but keep their other keys and unknown roles.

    Raises:
        PrlhfError: the file cannot be read, or a row has no prompt.
    """
    path = local_path(str(path))
    if not path.exists():
        raise PrlhfError(f"no prompts at {path}", "give a file, or `eval`, `own` or `judging`")
    if form(path):
        return [_prompt(raw, column) for raw in file_rows([path]).rows]
    try:
        content = read_all(path).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise PrlhfError(f"cannot read prompts {path}: {error}", "give JSONL, CSV, parquet or text") from error
    if path.suffix.lower() in BINARY or "\0" in content:
        raise PrlhfError(f"cannot read prompts {path}: it is not text", "give JSONL, CSV, parquet or text")
    return [line for line in (line.rstrip("\r").lstrip(MARK) for line in content.split("\n")) if line.strip()]


def _prompt(raw: Raw, column: str) -> Text:
    if raw.problem:
        raise PrlhfError(f"{raw.location}: {raw.problem}", ROW)
    value = raw.value
    if isinstance(value, Mapping):
        if column not in value:
            names = [str(name) for name in value]
            other = names[0] if len(names) == 1 else "NAME"
            found = nearest(column, names) if names else "it has none"
            raise PrlhfError(
                f"{raw.location}: no prompt, column '{column}' is missing ({found})",
                f"name the column: --prompt-column {other}",
            )
        value = value[column]
    try:
        return text_or_messages(value, column, strict=False)
    except Malformed as bad:
        raise PrlhfError(f"{raw.location}: no prompt, {bad}", ROW) from bad
