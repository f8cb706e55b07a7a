"""The prepared data set: its columns, and reading and writing it.

It is a folder with `train.parquet`, `eval.parquet`, `users.parquet` and `manifest.json`. `prompt`, `chosen` and
`rejected` follow TRL's preference format, plain strings or lists of {role, content} messages. `user_index`
counts from 1; index 0 is the generic user, which is also used for eval users that are unseen in training.

Some data sets have more files: `prompts.jsonl`, their own prompts to generate from (`{"prompt": …}`); `judging.jsonl`,
(prompt, user) pairs to judge, with what a judge may know about the user; and `choices.jsonl`, the choices from which
users that are unseen in training can be learned, in the format of custom data. They are not in `eval.parquet`, which
holds what such a user is tested on.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from prlhf.errors import PrlhfError, one_line
from prlhf.folders import replacing, what_is
from prlhf.parse import json_value

Message = dict[str, str]
Text = str | list[Message]


class _Turn(TypedDict):
    role: str
    content: str


class _Prompt(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    prompt: str | list[_Turn]


class _Judged(_Prompt):
    user_id: str
    material: NotRequired[dict[str, Any]]


class _Choice(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    id: str
    prompt: str | list[_Turn]
    chosen: str | list[_Turn]
    rejected: str | list[_Turn]
    user_id: str
    user_text: NotRequired[str]


class _Manifest(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    content_hash: str


_MANIFEST: TypeAdapter[Any] = TypeAdapter(_Manifest)
_PROMPT: TypeAdapter[Any] = TypeAdapter(_Prompt)
_JUDGED: TypeAdapter[Any] = TypeAdapter(_Judged)
_CHOICE: TypeAdapter[Any] = TypeAdapter(_Choice)
AGAIN = "run `prlhf prep` again"

PROMPTS, JUDGING, CHOICES = "prompts.jsonl", "judging.jsonl", "choices.jsonl"
GENERIC = "generic"  # the id of the generic user, whose index is 0

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
USERS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),
        ("preference", pa.string()),
        ("train_count", pa.int32()),
        ("eval_count", pa.int32()),
        ("seen", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Comparison:
    """A comparison: one user preferred `chosen` to `rejected` as the response to `prompt`."""

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    user_id: str
    user_index: int  # 0: unseen in training
    user_text: str  # "" if there is none
    prompt_id: str
    seen: bool  # whether the user has training comparisons


@dataclass(frozen=True)
class User:
    """A user of a prepared data set."""

    id: str
    user_index: int  # from 1; 0: unseen in training
    text: str
    preference: str  # true preference in words, "" if unknown; for the oracle and judges, never for training
    train_count: int
    eval_count: int
    seen: bool


@dataclass(frozen=True)
class Prepared:
    """A prepared data set in memory. `manifest` holds its source, its options and the number of dropped rows."""

    train: list[Comparison]
    eval: list[Comparison]
    users: list[User]
    manifest: dict[str, Any]
    prompts: list[Text] = field(default_factory=list)  # the data set's own prompts to generate from
    judging: list[dict[str, Any]] = field(default_factory=list)  # rows with `prompt`, `user_id` and `material`
    choices: list[Comparison] = field(default_factory=list)  # of unseen users, to learn them from; not in `eval`

    @property
    def conversational(self) -> bool:
        """Whether prompts and responses are lists of messages."""
        return self.manifest.get("format") == "conversational"

    @property
    def user_ids(self) -> list[str]:
        """The ids of the seen users; the user at position i has the index i + 1."""
        return [u.id for u in sorted(self.users, key=lambda u: u.user_index) if u.seen]


def prompt_id(prompt: Text) -> str:
    """Return a stable id of a prompt: the first 16 hex digits of the SHA-256 of its content."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]


def conversation(text: Text) -> str:
    """Return a prompt as plain text: a conversation has a line `role: content` per message."""
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in text)


def comparisons_schema(conversational: bool) -> pa.Schema:
    """Return the columns of train.parquet and eval.parquet."""
    text = MESSAGES if conversational else pa.string()
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", text),
            ("chosen", text),
            ("rejected", text),
            ("user_id", pa.string()),
            ("user_index", pa.int32()),
            ("user_text", pa.string()),
            ("prompt_id", pa.string()),
            ("seen", pa.bool_()),
        ]
    )


def content_hash(train: list[Comparison], held_out: list[Comparison], choices: list[Comparison]) -> str:
    """Return the SHA-256 of all comparisons, 64 hex digits."""
    digest = hashlib.sha256()
    for row in [*train, *held_out, *choices]:
        digest.update(json.dumps(asdict(row), sort_keys=True).encode())
    return digest.hexdigest()


def write_prepared(out: Path, data: Prepared) -> dict[str, Any]:
    """Write the folder `out` completely or not at all.

    Returns:
        The manifest, with `format` and `content_hash` added.

    Raises:
        PrlhfError: `out` is not a data set that may be replaced, or it cannot be written.
    """
    conversational = bool(data.train) and not isinstance(data.train[0].prompt, str)
    manifest = data.manifest | {
        "format": "conversational" if conversational else "plain",
        "content_hash": content_hash(data.train, data.eval, data.choices),
    }
    with replacing(out, "dataset") as folder:
        schema = comparisons_schema(conversational)
        pq.write_table(pa.Table.from_pylist([asdict(r) for r in data.train], schema), folder / "train.parquet")
        pq.write_table(pa.Table.from_pylist([asdict(r) for r in data.eval], schema), folder / "eval.parquet")
        pq.write_table(pa.Table.from_pylist(list(map(_row_of, data.users)), USERS_SCHEMA), folder / "users.parquet")
        prompts = [{"prompt": prompt} for prompt in data.prompts]
        for name, rows in ((PROMPTS, prompts), (JUDGING, data.judging), (CHOICES, list(map(_choice, data.choices)))):
            if rows:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (folder / name).write_text("".join(lines), encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _row_of(user: User) -> dict[str, Any]:
    """A row of users.parquet, whose column `index` is the user index."""
    row = asdict(user)
    return row | {"index": row.pop("user_index")}


def _user_of(row: dict[str, Any]) -> User:
    return User(user_index=row["index"], **{name: value for name, value in row.items() if name != "index"})


def _choice(row: Comparison) -> dict[str, Any]:
    """A line of choices.jsonl, in the format of custom data."""
    text = {"user_text": row.user_text} if row.user_text else {}
    return {
        "id": row.id,
        "prompt": row.prompt,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "user_id": row.user_id,
    } | text


def _chosen(row: dict[str, Any]) -> Comparison:
    return Comparison(**{"user_text": ""} | row, user_index=0, prompt_id=prompt_id(row["prompt"]), seen=False)


def is_prepared(folder: Path) -> bool:
    """Return whether `folder` is a data set made by `prlhf prep`, damaged or not."""
    has_manifest = os.path.isfile(folder / "manifest.json")  # unlike Path.is_file, False for a name that is too long
    return has_manifest and what_is(folder) in ("dataset", None)


def gone(run: Path, dataset: str) -> PrlhfError:
    """Return the error for a run whose data set is no longer in its folder."""
    return PrlhfError(f"the data set of {run} is gone from {dataset}", "give its new folder with --dataset")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a prepared data set.

    Raises:
        PrlhfError: the manifest is missing or damaged.
    """
    manifest: dict[str, Any] = read_value(folder / "manifest.json", _MANIFEST, AGAIN)
    return manifest


def read_prepared(folder: Path) -> Prepared:
    """Read a prepared data set.

    Raises:
        PrlhfError: `folder` is not a prepared data set, or one of its files is damaged or has other columns.
    """
    if not is_prepared(folder):
        raise PrlhfError(f"{folder} is not a prepared data set: it has no manifest.json", "make one with `prlhf prep`")
    manifest = read_manifest(folder)
    schema = comparisons_schema(manifest.get("format") == "conversational")
    prompts = read_lines(folder / PROMPTS, _PROMPT, AGAIN)
    data = Prepared(
        train=[Comparison(**row) for row in read_table(folder / "train.parquet", schema, AGAIN)],
        eval=[Comparison(**row) for row in read_table(folder / "eval.parquet", schema, AGAIN)],
        users=[_user_of(row) for row in read_table(folder / "users.parquet", USERS_SCHEMA, AGAIN)],
        manifest=manifest,
        prompts=[row["prompt"] for row in prompts],
        judging=read_lines(folder / JUDGING, _JUDGED, AGAIN),
        choices=[_chosen(row) for row in read_lines(folder / CHOICES, _CHOICE, AGAIN)],
    )
    _check_users(folder, data)
    return data


def _check_users(folder: Path, data: Prepared) -> None:
    """Check that seen users have the indices from 1, the others 0, and that comparisons use no other index."""
    indices = sorted(user.user_index for user in data.users)
    last = len(data.user_ids)
    if indices != [0] * (len(indices) - last) + list(range(1, last + 1)):
        raise PrlhfError(f"{folder}/users.parquet: the seen users are not numbered from 1", AGAIN)
    for name, rows in (("train", data.train), ("eval", data.eval)):
        wrong = next((row for row in rows if not 0 <= row.user_index <= last), None)
        if wrong is not None:
            why = f"user_index = {wrong.user_index} of the row '{wrong.id}', and there are {last} users"
            raise PrlhfError(f"{folder}/{name}.parquet: {why}", AGAIN)


# ---- reading and checking its files ----


def read_value(path: Path, kind: TypeAdapter[Any], hint: str) -> Any:
    """Read a JSON file and check it against `kind`.

    Raises:
        PrlhfError: the file is damaged; `hint` says what to do.
    """
    try:
        return kind.validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", hint) from error


def read_lines(path: Path, kind: TypeAdapter[Any], hint: str) -> list[Any]:
    """Read a JSONL file and check each row against `kind`; returns [] if the file does not exist.

    Raises:
        PrlhfError: the file is damaged; `hint` says what to do.
    """
    if not os.path.lexists(path):
        return []
    try:
        return [kind.validate_python(json_value(line)) for line in path.read_bytes().split(b"\n") if line]
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", hint) from error


def read_table(path: Path, schema: pa.Schema, hint: str) -> list[dict[str, Any]]:
    """Read the columns of `schema` from a parquet file.

    Raises:
        PrlhfError: the file is damaged, lacks a column or has it twice, or a cell is empty; `hint` says what to do.
    """
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would import pyarrow.dataset, and with it pandas
            table = file.read()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # from the names of the columns
        raise PrlhfError(f"cannot read {path}: {one_line(error)}", hint) from error
    for name in schema.names:
        if (times := table.column_names.count(name)) != 1:
            raise PrlhfError(f"{path} has {f'{times} columns' if times else 'no column'} '{name}'", hint)
    try:
        table = table.select(schema.names).cast(schema)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PrlhfError(f"{path} has a column of another type: {one_line(error)}", hint) from error
    for name in schema.names:
        if any(_has_null(chunk) for chunk in table.column(name).chunks):
            raise PrlhfError(f"{path} has an empty cell in the column '{name}'", hint)
    return rows


def _has_null(values: Any) -> bool:
    """Whether a value is null, also inside messages."""
    if values.null_count:
        return True
    if pa.types.is_list(values.type):
        return _has_null(values.flatten())
    return pa.types.is_struct(values.type) and any(map(_has_null, values.flatten()))
