"""The users of a checkpoint on disk: who they are, and their rows of the user model.

Here are those who were trained; who came later, and whose rows changed, stands in later_users.py.
users.json can be read by anyone. With many users it is users.sqlite, and the user model's file has a SHA-256 for each
MiB: then a few users of a million are found, and their rows read and checked, without reading the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import BaseModel
from torch import Tensor

from prlhf.errors import PrlhfError, one_line
from prlhf.model.later_users import FILE, LaterUsers, has_table, read_later
from prlhf.parse import json_value

MANY = 1000  # users; with more a checkpoint can be read in part
BLOCK = 2**20  # bytes of a file that have one checksum
PLAIN, INDEXED = "users.json", "users.sqlite"
FORGOTTEN = "CREATE TABLE IF NOT EXISTS forgotten (position INTEGER PRIMARY KEY)"
TABLE = "CREATE TABLE users (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT)"


class _Plain(BaseModel):
    """What users.json holds."""

    ids: list[str | None]  # None: a user who was forgotten, whose index nobody else gets
    texts: dict[str, str]


@dataclass(frozen=True)
class Users:
    """Some or all seen users of a checkpoint."""

    ids: list[str]
    texts: dict[str, str]  # of those who have one
    user_indices: list[int] | None  # of `ids`, from 1; None: 1, 2, …
    trained: int  # the last user index in the user model's file: of trained users, and of those who were forgotten
    count: int  # the last user index of all
    partial: bool = False  # whether these are only some of the users, so that only their rows are read

    def index_of(self) -> dict[str, int]:
        """The user index of each user, by id."""
        return index_of(self.ids, self.user_indices)


def index_of(ids: Sequence[str], user_indices: Sequence[int] | None) -> dict[str, int]:
    """The user index of each of `ids`, which have `user_indices`, or 1, 2, … where these are None."""
    return dict(zip(ids, range(1, len(ids) + 1) if user_indices is None else user_indices, strict=True))


def write_users(folder: Path, ids: Sequence[str | None], texts: Mapping[str, str]) -> None:
    """Write the users of a checkpoint; position i of `ids` has user index i + 1. None: nobody has this index."""
    if len(ids) <= MANY:
        text = json.dumps({"ids": ids, "texts": texts}, ensure_ascii=False)
        (folder / PLAIN).write_text(text + "\n", encoding="utf-8")
        return
    with closing(sqlite3.connect(folder / INDEXED)) as database:
        database.execute(TABLE)
        rows = ((user_index, user, texts.get(user)) for user_index, user in enumerate(ids, start=1) if user is not None)
        database.executemany("INSERT INTO users VALUES (?, ?, ?)", rows)
        database.execute(FORGOTTEN)
        holes = ((user_index,) for user_index, user in enumerate(ids, start=1) if user is None)
        database.executemany("INSERT INTO forgotten VALUES (?)", holes)
        database.commit()


def remove_user(path: Path, user_id: str) -> None:
    """Remove a user from a users.sqlite in place, so that no byte of them stays."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete = ON")
        database.execute(FORGOTTEN)
        database.execute("INSERT INTO forgotten SELECT position FROM users WHERE id = ?", (user_id,))
        database.execute("DELETE FROM users WHERE id = ?", (user_id,))
        database.commit()
        database.execute("VACUUM")


def read_users(folder: Path, wanted: Collection[str] | None = None) -> Users:
    """Read the users of a checkpoint: all, or if it can be read in part those of `wanted` that it knows.

    Of few trained users all are read, whoever is wanted.

    Raises:
        PrlhfError: a file is missing or damaged.
    """
    users = _read_indexed(folder, wanted) if (folder / INDEXED).is_file() else read_plain(folder)
    later = read_later(folder, wanted)
    return users if later is None else _joined(folder, users, later, wanted is not None)


def _joined(folder: Path, trained: Users, later: LaterUsers, partial: bool) -> Users:
    count = max(trained.count, later.last)
    if not partial and len(later.users) + len(later.forgotten) != count - trained.count:
        raise _damaged(folder / FILE, "a user is missing")
    known = trained.index_of() | {user: at for at, user, _ in later.users}
    texts = trained.texts | {user: text for _, user, text in later.users if text is not None}
    user_indices = None if list(known.values()) == list(range(1, count + 1)) else list(known.values())
    return Users(list(known), texts, user_indices, trained.trained, count, partial)


def _forgotten(database: sqlite3.Connection, every: bool) -> list[int]:
    """The indices of forgotten users, which nobody else gets: `every` one, or the last.

    Checkpoints of the first version have no such table.
    """
    if not has_table(database, "forgotten"):
        return []
    which = "position" if every else "max(position)"
    return [row[0] or 0 for row in database.execute(f"SELECT {which} FROM forgotten")]


def _read_indexed(folder: Path, wanted: Collection[str] | None) -> Users:
    path = folder / INDEXED
    try:
        # immutable: nobody writes to the file, so it needs no locks and no files beside it
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            holes = _forgotten(database, wanted is None)
            count = max([database.execute("SELECT max(position) FROM users").fetchone()[0] or 0, *holes])
            if wanted is None:
                rows = database.execute("SELECT * FROM users ORDER BY position").fetchall()
            else:
                one = "SELECT * FROM users WHERE id = ?"
                rows = sorted(row for user in wanted for row in database.execute(one, (user,)))
    except (sqlite3.Error, TypeError) as error:
        raise _damaged(path, one_line(error)) from error
    if wanted is None and len(rows) + len(holes) != count:
        raise _damaged(path, "a user is missing")
    user_indices = None if wanted is None and not holes else [position for position, _, _ in rows]
    texts = {user: text for _, user, text in rows if text is not None}
    return Users([user for _, user, _ in rows], texts, user_indices, count, count, partial=wanted is not None)


def read_plain(folder: Path) -> Users:
    """Read users.json. Raises PrlhfError if it is missing or damaged."""
    path = folder / PLAIN
    try:
        users = _Plain.model_validate(json_value(path.read_bytes()))
    except FileNotFoundError as error:
        raise PrlhfError(f"{folder} lacks {PLAIN}", "train again, or use a copy") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, one_line(error)) from error
    known = {user: user_index for user_index, user in enumerate(users.ids, start=1) if user is not None}
    if len(known) + users.ids.count(None) < len(users.ids):
        raise _damaged(path, "an id occurs twice")
    user_indices = None if len(known) == len(users.ids) else list(known.values())
    return Users(list(known), users.texts, user_indices, len(users.ids), len(users.ids))


def _damaged(path: Path, why: str) -> PrlhfError:
    return PrlhfError(f"{path} is damaged: {why}", "train again, or use a copy")


# ---- rows of a large file ----


def changed(path: Path) -> PrlhfError:
    """The error for a file whose checksum differs."""
    return PrlhfError(
        f"{path} was changed or cut short after it was saved (SHA-256 differs)", "train again, or use a copy"
    )


def block_sums(path: Path) -> Iterator[str]:
    """The SHA-256 of each block of `path`; the last block may be short."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield hashlib.sha256(block).hexdigest()


class CheckedFile:
    """Reads parts of `path`, whose blocks have the SHA-256 `sums`. One block is in memory at a time."""

    def __init__(self, path: Path, file: BinaryIO, sums: Sequence[str]) -> None:
        self.path, self._file, self._sums = path, file, sums
        self._number, self._block = -1, b""

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, after comparing the blocks that hold them with their checksums."""
        numbers = range(start // BLOCK, math.ceil(end / BLOCK))
        whole = b"".join(map(self._checked, numbers))
        return whole[start - numbers.start * BLOCK :][: end - start]

    def _checked(self, number: int) -> bytes:
        if number != self._number:
            self._file.seek(number * BLOCK)
            self._number, self._block = number, self._file.read(BLOCK)
            if number >= len(self._sums) or hashlib.sha256(self._block).hexdigest() != self._sums[number]:
                raise changed(self.path)
        return self._block


@dataclass(frozen=True)
class RowSelection:
    """A selection of `rows` out of `count`."""

    rows: Sequence[int]
    count: int


def read_rows(path: Path, sums: Sequence[str], some: Mapping[str, RowSelection]) -> dict[str, Tensor]:
    """The fp32 tensors of a safetensors file; of the matrices named in `some` only the selected rows are read.

    Raises:
        PrlhfError: a block that was read is not what was saved, or a matrix has another number of rows.
    """
    with path.open("rb") as file:
        checked = CheckedFile(path, file, sums)
        begin = 8 + int.from_bytes(checked.read(0, 8), "little")  # its length, header, numbers
        try:
            header: dict[str, Any] = json.loads(checked.read(8, begin))
        except ValueError as error:
            raise changed(path) from error
        header.pop("__metadata__", None)
        ends = [begin + about["data_offsets"][1] for about in header.values()]
        if path.stat().st_size != max(ends):
            raise changed(path)
        found = {}
        for name, about in header.items():
            start, shape, wanted = begin + about["data_offsets"][0], about["shape"], some.get(name)
            if wanted is None:
                found[name] = _fp32([checked.read(start, begin + about["data_offsets"][1])], shape)
            elif shape[0] != wanted.count:
                raise PrlhfError(
                    f"{path} is damaged: '{name}' has {shape[0]} rows, not {wanted.count}",
                    "train again, or use a copy",
                )
            else:
                size = 4 * shape[1]
                parts = [checked.read(start + i * size, start + (i + 1) * size) for i in wanted.rows]
                found[name] = _fp32(parts, [len(parts), shape[1]])
    return found


def _fp32(parts: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    raw = bytearray().join(parts)
    return torch.frombuffer(raw, dtype=torch.float32).reshape(shape) if raw else torch.empty(shape)
