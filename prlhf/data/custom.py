"""Anyone's data: TRL's preference format (`prompt`, `chosen`, `rejected`, plain or conversational) plus `user_id`.

Optional columns: `user_text` (text about the user) and `id`. Files, folders or a hub id; other column names
through `columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.intake import EQUAL, REPEAT, Convert, Drops, Intake, check_left
from prlhf.data.rows import (
    Dropped,
    Loaded,
    Malformed,
    RawRows,
    Row,
    any_text,
    column,
    identifier,
    kind,
    mapping,
    text,
    user_identifier,
)
from prlhf.data.source import data_files, file_rows, hub_splits, split_files
from prlhf.data.splits import first_appearance, shared_prompts, split_by_prompt, text_conflicts
from prlhf.errors import PrlhfError, nearest
from prlhf.progress import Progress
from prlhf.records import Text

COLUMNS = ("id", "prompt", "chosen", "rejected", "user_id", "user_text")
EVAL_NAMES = ("eval", "validation", "valid", "test")  # the first that is there is held out
TURNS = ("prompt", "chosen", "rejected")


def load(config: PrepConfig, progress: Progress) -> Loaded:
    """Read preference data of the user's own: a file, a folder, or a data set of the hub."""
    _check_columns(config.columns)
    source = config.source or config.dataset
    if config.source and not Path(source).exists():
        raise PrlhfError(f"--source {source} does not exist", "give a file, or a folder of files")
    raw = _open(source)
    drops = Drops(REPEAT, EQUAL)
    intake = Intake(config.bad_rows, drops, progress)
    converter = _Converter(config.columns)
    parts = {part: intake.read(part, rows, converter.part(part)) for part, rows in raw.items()}
    warnings = []
    if "all" in parts:
        check_left(parts["all"], drops, source)
        train, held_out = split_by_prompt(parts["all"], config.eval_fraction, config.seed)
    else:
        train, held_out = parts["train"], parts["eval"]
        check_left(train, drops, source)
        if shared := shared_prompts(train, held_out):
            warnings.append(f"{shared} held-out prompts also stand in training: accuracy on them flatters")
    return Loaded(
        train=train,
        eval=held_out,
        order=first_appearance(train),
        source=source,
        options=_options(config, split="all" in parts),
        counts=drops.report(),
        notes={"user_text_conflicts": text_conflicts([*train, *held_out])},
        warnings=warnings,
    )


def _options(config: PrepConfig, split: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"bad_rows": config.bad_rows, "columns": config.columns}
    return options | ({"eval_fraction": config.eval_fraction} if split else {})


def _check_columns(given: dict[str, str]) -> None:
    for ours in given:
        if ours not in COLUMNS:
            raise PrlhfError(f"columns names an unknown column '{ours}'", nearest(ours, COLUMNS))


def _open(source: str) -> dict[str, RawRows]:
    """{`train`, `eval`} where the data come split, else {`all`}."""
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if path.exists():
        return {"all": file_rows([path])}
    splits = hub_splits(source, f"run: prlhf prep PATH (local .jsonl, .json or .parquet; there is no local {source})")
    return _name_parts(splits) or {"all": _only_split(source, splits)}


def _open_folder(folder: Path) -> dict[str, RawRows]:
    splits = {name: split_files(folder, name) for name in ("train", *EVAL_NAMES)}
    opened = {name: file_rows(files) for name, files in splits.items() if files}
    if parts := _name_parts(opened):
        return parts
    files = splits["train"] or data_files(folder)
    if not files:
        raise PrlhfError(f"{folder} holds no data file", "put train.jsonl and eval.jsonl (or .json, .parquet) into it")
    return {"all": file_rows(files)}


def _name_parts(splits: Mapping[str, RawRows]) -> dict[str, RawRows] | None:
    held_out = next((name for name in EVAL_NAMES if name in splits), None)
    if held_out is None or "train" not in splits:
        return None
    return {"train": splits["train"], "eval": splits[held_out]}


def _only_split(source: str, splits: Mapping[str, RawRows]) -> RawRows:
    if "train" in splits:
        return splits["train"]
    if len(splits) != 1:
        raise PrlhfError(f"{source} has the splits {', '.join(splits)} and no 'train'", "give local files instead")
    return next(iter(splits.values()))


class _Converter:
    """Raw rows to `Row`s. The first well-formed row sets the format, plain or conversational, for all."""

    def __init__(self, given: dict[str, str]) -> None:
        self.given = given
        self.names = {ours: given.get(ours, ours) for ours in COLUMNS}
        self.conversational: bool | None = None

    def part(self, part: str) -> Convert:
        return lambda value, number: self._convert(mapping(value), f"{part}-{number}")

    def _convert(self, raw: Mapping[str, Any], default_id: str) -> Row:
        self._refuse_implicit_prompt(raw)
        turns = {ours: _text_or_messages(self._column(raw, ours), self.names[ours]) for ours in TURNS}
        user = user_identifier(self._column(raw, "user_id"), self.names["user_id"])
        about, given_id = self._optional(raw, "user_text"), self._optional(raw, "id")
        row = Row(
            id=default_id if given_id is None else identifier(given_id, self.names["id"]),
            **turns,
            user_id=user,
            user_text="" if about is None else any_text(about, self.names["user_text"]),
        )
        self._check_format(turns)
        if row.chosen == row.rejected:
            raise Dropped(EQUAL)
        return row

    def _column(self, raw: Mapping[str, Any], ours: str) -> Any:
        return column(raw, self.names[ours], f"name the file's column with --set 'columns={{{ours}: NAME}}'")

    def _optional(self, raw: Mapping[str, Any], ours: str) -> Any:
        """None where the column is missing, unless it was asked for by name."""
        return self._column(raw, ours) if ours in self.given else raw.get(ours)

    def _check_format(self, turns: dict[str, Text]) -> None:
        found = {name: not isinstance(value, str) for name, value in turns.items()}
        if len(set(found.values())) > 1:
            words = ", ".join(f"'{name}' is {kind(turns[name])}" for name in TURNS)
            raise Malformed(f"plain text and messages are mixed: {words}")
        if self.conversational is None:
            self.conversational = found["prompt"]
        if found["prompt"] != self.conversational:
            ours, first = ("messages", "text") if found["prompt"] else ("text", "messages")
            raise Malformed(f"the row is in {ours}, but the first row is in {first}")

    def _refuse_implicit_prompt(self, raw: Mapping[str, Any]) -> None:
        """TRL also knows pairs that both contain the prompt; where it ends is a guess we leave to the user."""
        chosen, rejected = raw.get(self.names["chosen"]), raw.get(self.names["rejected"])
        if self.names["prompt"] not in raw and _same_start(chosen, rejected):
            raise Malformed(
                "column 'prompt' is missing, and 'chosen' and 'rejected' begin alike: an implicit prompt",
                "give the prompt a column of its own, for instance with trl.extract_prompt on every row",
            )


def _same_start(chosen: Any, rejected: Any) -> bool:
    """Whether two responses share their first message, or their first word and one more character."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        return chosen[:1] == rejected[:1] != []
    if isinstance(chosen, str) and isinstance(rejected, str):
        word = chosen.split(" ", 1)[0]
        return bool(word) and len(word) < len(chosen) and rejected.startswith(chosen[: len(word) + 1])
    return False


def _text_or_messages(value: Any, name: str) -> Text:
    """Text, or a list of messages, of which `role` and `content` are kept."""
    if not isinstance(value, list):
        return text(value, name)
    if not value:
        raise Malformed(f"'{name}' is empty")
    messages = [mapping(message, f"a message of '{name}'") for message in value]
    return [{key: text(column(m, key), f"{name}.{key}") for key in ("role", "content")} for m in messages]
