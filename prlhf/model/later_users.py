"""Users as they changed after training: new ones, other rows, and those who were forgotten.

What training wrote stays as it is. adapted.sqlite beside it has the rows of users who were adapted, each with a
checksum of its own, so that one of them is found, read or added at a cost that does not depend on the number of users.
The file is changed in place, by transactions: whoever looks at it after a kill finds what was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file, full_disk_named, write_errno

FILE = "adapted.sqlite"
JOURNAL = f"{FILE}-journal"  # what a killed transaction leaves, and the next look removes
WAIT = 60.0  # seconds for another process to end its transaction
TABLES = (
    "CREATE TABLE IF NOT EXISTS rows (position INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT, numbers BLOB NOT NULL,"
    " sum BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS forgotten (position INTEGER PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY, changes BLOB NOT NULL)",
)


@dataclass(frozen=True)
class LaterRow:
    """The row [d] of a user, fp32; `user_id` is None for a user of training, whose row is another one now."""

    user_index: int
    numbers: Tensor
    user_id: str | None = None
    text: str | None = None

    @classmethod
    def read(cls, position: int, user_id: str | None, text: str | None, numbers: bytes, checksum: bytes) -> LaterRow:
        """A row as it stands in the file. Raises ValueError if it is not what was written."""
        if _sum(position, user_id, text, numbers) != checksum:
            raise ValueError(f"the row of user index {position} differs from its checksum")
        return cls(position, torch.from_numpy(np.frombuffer(numbers, dtype="<f4").astype(np.float32)), user_id, text)


@dataclass(frozen=True)
class LaterUsers:
    """Some or all of the users who came after training: (index, id, text), by index; and all empty indices."""

    users: list[tuple[int, str, str | None]]
    forgotten: list[int]
    last: int  # the last user index, 0 if there is none


@contextmanager
def opened(path: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield the database at `path` as it is at one moment, or, to `write`, in a transaction that ends with the context.

    Raises:
        PrlhfError: the file is damaged, or the system refuses to write it (CannotWrite).
    """
    # without the right to write, what a kill left could not be put in order
    with _connected(path, "rwc" if write else "rw" if os.access(path, os.W_OK) else "ro") as database:
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        yield database
        database.execute("COMMIT")


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    name = f"{path.resolve().as_uri()}?mode={mode}"
    with full_disk_named(path):
        try:
            with closing(sqlite3.connect(name, WAIT, isolation_level=None, uri=True)) as database:
                yield database
        except sqlite3.DatabaseError as error:
            if write_errno(error, path) is not None:
                raise
            raise damaged(path, one_line(error)) from error


def damaged(path: Path, why: str) -> PrlhfError:
    """The error for a database that does not hold what was written."""
    return PrlhfError(f"{path} is damaged: {why}", "use a copy of the run")


def has_table(database: sqlite3.Connection, name: str) -> bool:
    """Whether there is such a table; files of the first version have no rows, and empty files nothing."""
    return bool(database.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0])


# ---- reading ----


def read_later(folder: Path, wanted: Collection[str] | None = None) -> LaterUsers | None:
    """The users who came after training, all or those of `wanted`; None if nobody did.

    Raises:
        PrlhfError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    with opened(folder / FILE) as database:
        if not has_table(database, "rows"):
            return None
        some = "SELECT position, id, text FROM rows WHERE id"
        if wanted is None:
            users = database.execute(f"{some} IS NOT NULL ORDER BY position").fetchall()
            forgotten = [row[0] for row in database.execute("SELECT position FROM forgotten")]
        else:
            users, forgotten = sorted(row for user in wanted for row in database.execute(f"{some} = ?", (user,))), []
        ends = (
            "SELECT max(position) FROM forgotten",
            "SELECT position FROM rows WHERE id IS NOT NULL ORDER BY position DESC LIMIT 1",
        )
        last = max((database.execute(end).fetchone() or [0])[0] or 0 for end in ends)
    return LaterUsers(users, forgotten, last)


def read_later_rows(folder: Path, user_indices: Iterable[int] | None = None) -> Iterator[LaterRow]:
    """The rows of all who have one here, or of those of `user_indices` who do.

    Raises:
        PrlhfError: a row is not what was written.
    """
    path = folder / FILE
    if not path.is_file():
        return
    with opened(path) as database:
        if not has_table(database, "rows"):
            return
        every = "SELECT * FROM rows"
        found = (
            database.execute(every)
            if user_indices is None
            else (row for at in user_indices for row in database.execute(f"{every} WHERE position = ?", (at,)))
        )
        for row in found:
            try:
                yield LaterRow.read(*row)
            except ValueError as error:
                raise damaged(path, str(error)) from error


def changes_of(folder: Path) -> str | None:
    """Hex digits that differ after every change of a user; None if there was none."""
    if not (folder / FILE).is_file():
        return None
    with opened(folder / FILE) as database:
        found = database.execute("SELECT changes FROM state").fetchone() if has_table(database, "state") else None
    return found and found[0].hex()


# ---- changing ----


def put_later(database: sqlite3.Connection, rows: Iterable[LaterRow]) -> None:
    """Put rows into an open database, in place of older ones of the same users. A user keeps id and text."""
    for row in rows:
        before = database.execute("SELECT id, text FROM rows WHERE position = ?", (row.user_index,)).fetchone()
        user_id, text = before or (row.user_id, row.text)
        columns = (row.user_index, user_id, text, row.numbers.float().contiguous().numpy().astype("<f4").tobytes())
        checksum = _sum(*columns)
        database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", (*columns, checksum))
        _note(database, checksum)


def remove_later(database: sqlite3.Connection, user_index: int) -> None:
    """Remove a user's row, id and text from an open database; if the user came after training, the index is empty."""
    gone = "INSERT INTO forgotten SELECT position FROM rows WHERE position = ? AND id IS NOT NULL"
    database.execute(gone, (user_index,))
    database.execute("DELETE FROM rows WHERE position = ?", (user_index,))
    _note(database, f"forgotten {user_index}".encode())


def copy_later(folder: Path, other: Path) -> None:
    """Write the file of `folder` into `other`, which may be the same folder, without what was removed from it."""
    with atomic_file(other / FILE) as beside, _connected(folder / FILE, "rw") as database:
        database.execute("VACUUM INTO ?", (str(beside),))


def create_tables(database: sqlite3.Connection, tables: Iterable[str] = TABLES) -> None:
    """Create the tables that an open database does not have yet."""
    for table in tables:
        database.execute(table)


def _note(database: sqlite3.Connection, change: bytes) -> None:
    before = database.execute("SELECT changes FROM state").fetchone()
    after = hashlib.sha256((before[0] if before else b"") + change).digest()
    database.execute("INSERT OR REPLACE INTO state VALUES (1, ?)", (after,))


def _sum(position: int, user_id: str | None, text: str | None, numbers: bytes) -> bytes:
    return hashlib.sha256(json.dumps([position, user_id, text]).encode() + numbers).digest()
