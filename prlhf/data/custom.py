"""Users' own data: TRL's preference format (`prompt`, `chosen`, `rejected`, plain or conversational) plus `user_id`.

Optional columns are `user_text` (text about the user) and `id`; `columns` maps other names of columns. The data are a
file, a folder or a data set of the hub.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.columns import OPTIONAL, UNUSED, check_columns, column_value
from prlhf.data.identifiers import NAMED, identifier, look_alikes, own_ids, user_identifier
from prlhf.data.messages import one_answer_each, one_format, take_off_prompts
from prlhf.data.rows import EQUAL, REPEAT, Convert, DropCounts, Dropped, LoadedData, Row, RowReader, check_left
from prlhf.data.splits import first_appearance, split_by_prompt, text_conflicts, warn_of_shared_prompts
from prlhf.errors import PrlhfError, nearest
from prlhf.progress import Progress
from prlhf.source.folders import EVAL_NAMES, TRAIN, open_folder
from prlhf.source.formats import file_rows, local_path
from prlhf.source.hub import hub_splits
from prlhf.source.messages import text_or_messages
from prlhf.source.raw import Cells, RawRows
from prlhf.source.values import Malformed, any_text, mapping

TURNS = ("prompt", "chosen", "rejected")


def load(config: PrepConfig, progress: Progress, user: str | None = None) -> LoadedData:
    """Read preference data from a file, a folder, or a data set of the hub.

    `user`: whose all rows are, whether there is a column for it or not.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, a setting does not apply, or no comparison is left.
    """
    check_columns(config.columns)
    source, raw = open_source(config)
    if "all" not in raw and "eval_fraction" in config.model_fields_set:
        raise PrlhfError(
            f"eval_fraction = {config.eval_fraction} does not apply: {source} has a held-out split",
            "drop it, or name the one split to divide with --split",
        )
    drops = DropCounts(REPEAT, EQUAL)
    reader = RowReader(config.bad_rows, drops, progress)
    converter = _Converter(config.columns, user)
    parts = {
        part: reader.read(part, rows, converter.part(part), key=lambda row: (row.id, row.user_id))
        for part, rows in raw.items()
    }
    rows, changed = take_off_prompts(parts)
    named = {part: own_ids(found) for part, found in rows.items()}
    parts = {part: found for part, (found, _) in named.items()}
    warnings = []
    if "all" in parts:
        check_left(parts["all"], drops, source)
        train, held_out = split_by_prompt(parts["all"], config.eval_fraction, config.seed)
    else:
        train, held_out = parts["train"], parts["eval"]
        check_left(train, drops, source)
        warnings = warn_of_shared_prompts(train, held_out)
    moved = dict(converter.moved + changed.counts + Counter({NAMED: sum(count for _, count in named.values())}))
    users = first_appearance([*train, *held_out])
    lost = sorted(converter.users.keys() - set(users))
    return LoadedData(
        train=train,
        eval=held_out,
        order=first_appearance(train),
        source=source,
        options=_options(config, split="all" in parts),
        counts=drops.report(),
        notes={"user_text_conflicts": text_conflicts([*train, *held_out]), "changed": moved, "users_lost": len(lost)},
        warnings=[*warnings, *_counted(moved), *changed.warnings, *_lost(lost), *look_alikes(users)],
    )


def _options(config: PrepConfig, split: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"bad_rows": config.bad_rows, "columns": config.columns}
    options |= {key: value for key in ("split", "config", "revision") if (value := getattr(config, key)) is not None}
    return options | ({"eval_fraction": config.eval_fraction} if split else {})


def _counted(moved: Mapping[str, int]) -> list[str]:
    return [f"{count} rows: {what}" for what, count in moved.items() if count]


def _lost(users: list[str]) -> list[str]:
    names = ", ".join(repr(user) for user in users[:3]) + (", …" if len(users) > 3 else "")
    who = "1 user" if len(users) == 1 else f"{len(users)} users"
    return [f"all rows of {who} were dropped: {names}"] if users else []


class _Converter:
    """Converts raw rows to `Row`s. The first well-formed row sets the format of all, plain or conversational."""

    def __init__(self, given: dict[str, str], user: str | None = None) -> None:
        self.names = {ours: given.get(ours, ours) for ours in (*OPTIONAL, *TURNS, "user_id")}
        self.asked = set(given)
        self.user = user
        self.conversational: bool | None = None
        self.moved: Counter[str] = Counter()
        self.users: dict[str, None] = {}  # users of all rows, including dropped ones

    def part(self, part: str) -> Convert:
        return lambda value, number: self._convert(mapping(value), f"{part}-{number}")

    def _convert(self, raw: Mapping[str, Any], default_id: str) -> Row:
        user = self._user(raw)
        self._refuse_implicit_prompt(raw)
        turns = one_format(
            *(text_or_messages(column_value(raw, ours, self.names[ours]), self.names[ours]) for ours in TURNS)
        )
        about, given_id = self._optional(raw, "user_text"), self._optional(raw, "id")
        row_id = default_id if given_id is None else identifier(given_id, self.names["id"], isinstance(raw, Cells))
        row = Row(row_id, *turns, user, "" if about is None else any_text(about, self.names["user_text"]))
        self._check_format(row)
        if row.chosen == row.rejected:
            raise Dropped(EQUAL)
        return self._one_answer_each(row)

    def _user(self, raw: Mapping[str, Any]) -> str:
        if self.user is not None:
            return self.user
        name = self.names["user_id"]
        user = user_identifier(column_value(raw, "user_id", name), name, isinstance(raw, Cells))
        self.users.setdefault(user)
        return user

    def _optional(self, raw: Mapping[str, Any], ours: str) -> Any:
        """The value of an optional column; None for an empty CSV cell or a missing column."""
        name = self.names[ours]
        if name == UNUSED:
            return None
        value = column_value(raw, ours, name) if ours in self.asked else raw.get(name)
        return None if isinstance(raw, Cells) and value == "" else value

    def _check_format(self, row: Row) -> None:
        found = not isinstance(row.prompt, str)
        if self.conversational is None:
            self.conversational = found
        if found != self.conversational:
            ours, first = ("messages", "text") if found else ("text", "messages")
            raise Malformed(f"the row is in {ours}, but the first row is in {first}")

    def _one_answer_each(self, row: Row) -> Row:
        if isinstance(row.prompt, str) or isinstance(row.chosen, str) or isinstance(row.rejected, str):
            return row
        prompt, chosen, rejected, moved = one_answer_each(row.prompt, row.chosen, row.rejected)
        self.moved.update(moved)
        return replace(row, prompt=prompt, chosen=chosen, rejected=rejected)

    def _refuse_implicit_prompt(self, raw: Mapping[str, Any]) -> None:
        """Refuse TRL's format in which both responses contain the prompt, because its end would be a guess."""
        chosen, rejected = raw.get(self.names["chosen"]), raw.get(self.names["rejected"])
        if self.names["prompt"] not in raw and _same_start(chosen, rejected):
            raise Malformed(
                "column 'prompt' is missing, and 'chosen' and 'rejected' have the same start: an implicit prompt",
                "put the prompt into its own column, for instance with trl.extract_prompt on every row",
            )


def _same_start(chosen: Any, rejected: Any) -> bool:
    """Whether two responses have the same first message, or the same first word and next character."""
    if isinstance(chosen, list) and isinstance(rejected, list):
        return chosen[:1] == rejected[:1] != []
    if isinstance(chosen, str) and isinstance(rejected, str):
        word = chosen.split(" ", 1)[0]
        return bool(word) and len(word) < len(chosen) and rejected.startswith(chosen[: len(word) + 1])
    return False


# ---- the source of the data, and its splits ----


def open_source(config: PrepConfig) -> tuple[str, dict[str, RawRows]]:
    """Open the data.

    Returns:
        The source for the manifest, and rows under `train` and `eval` if the data have such splits, else under `all`.

    Raises:
        PrlhfError: the data cannot be opened, or a setting does not apply to them.
    """
    source = config.source or config.dataset
    path = local_path(source)
    if config.source and not path.exists():
        raise PrlhfError(f"--source {source} does not exist", "give a file, or a folder of files")
    if path.is_dir():
        _refuse(config, "a folder", "revision")
        return str(path), choose_splits(str(path), open_folder(path, config.config), config.split)
    if path.exists():
        _refuse(config, "a file", "split", "config", "revision")
        return str(path), {"all": file_rows([path])}
    instead = f"run: prlhf prep PATH (local .jsonl, .csv, .parquet, …; there is no local {source})"
    return source, choose_splits(source, hub_splits(source, instead, config.config, config.revision), config.split)


def choose_splits(source: str, splits: Mapping[str, RawRows], asked: str | None) -> dict[str, RawRows]:
    """Choose the splits to use. `asked`: the split to train on, and after a comma the split to hold out.

    Returns:
        Rows under `train` and `eval`, or under `all` if there is no split to hold out.

    Raises:
        PrlhfError: there is no such split, or none is called `train` and none was asked for.
    """
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        for name in names:
            if name not in splits:
                raise PrlhfError(
                    f"{source} has no split '{name}'", f"it has {', '.join(splits)}; {nearest(name, splits)}"
                )
        if len(names) > 2 or len(set(names)) < len(names):
            raise PrlhfError(f"--split {asked} names {len(names)} splits", "name one, or TRAIN,EVAL")
        return {"all": splits[names[0]]} if len(names) == 1 else {"train": splits[names[0]], "eval": splits[names[1]]}
    if len(splits) == 1:
        return {"all": next(iter(splits.values()))}
    if TRAIN not in splits:
        listed = ", ".join(splits)
        raise PrlhfError(
            f"{source} has the splits {listed} and no '{TRAIN}'", "choose with --split TRAIN or --split TRAIN,EVAL"
        )
    held_out = next((name for name in EVAL_NAMES if name in splits), None)
    return {"all": splits[TRAIN]} if held_out is None else {"train": splits[TRAIN], "eval": splits[held_out]}


def _refuse(config: PrepConfig, what: str, *keys: str) -> None:
    for key in keys:
        if getattr(config, key) is not None:
            raise PrlhfError(
                f"--{key} {getattr(config, key)}: {config.source or config.dataset} is {what}", f"drop --{key}"
            )
