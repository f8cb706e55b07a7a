"""What a run keeps of adapted users: their choices, margins and slopes at the start, and the posterior.

They are tables of adapted.sqlite (model/later_users.py), beside the users' rows. Nothing of one user stands in
another's; each line has a checksum. Vectors are float64 in little-endian bytes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.adapt.apart import verdict
from prlhf.dataset import Text
from prlhf.model.later_users import FILE, create_tables, damaged, has_table, opened

TABLES = (
    "CREATE TABLE IF NOT EXISTS users (position INTEGER PRIMARY KEY, choices INTEGER NOT NULL, gain REAL NOT NULL,"
    " uncertainty REAL NOT NULL, start BLOB NOT NULL, mode BLOB NOT NULL, covariance BLOB NOT NULL, sum BLOB)",
    "CREATE TABLE IF NOT EXISTS choices (position INTEGER NOT NULL, digest BLOB NOT NULL, prompt TEXT NOT NULL,"
    " chosen TEXT NOT NULL, rejected TEXT NOT NULL, margin REAL NOT NULL, slopes BLOB NOT NULL, sum BLOB,"
    " PRIMARY KEY (position, digest))",
    # adapt/versions.py; what a user is now has no vectors here
    "CREATE TABLE IF NOT EXISTS versions (position INTEGER NOT NULL, number INTEGER NOT NULL, at TEXT NOT NULL,"
    " choices INTEGER NOT NULL, gain REAL NOT NULL, uncertainty REAL NOT NULL, numbers BLOB, mode BLOB,"
    " covariance BLOB, sum BLOB NOT NULL, PRIMARY KEY (position, number))",
)
COLUMNS = 7  # of users and of choices, before the checksum


@dataclass(frozen=True)
class KnownChoice:
    """A choice of a user, with margin and slopes [c] at the user's start."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float
    slopes: Tensor

    @property
    def digest(self) -> bytes:
        """What the choice is known by: the same words twice are one choice."""
        return digest_of(self.prompt, self.chosen, self.rejected)


@dataclass(frozen=True)
class KnownUser:
    """An adapted user: user index, number of choices, gain (apart.py), uncertainty, start row [d], posterior of z.

    The start of a user who was not trained is the prior's center, and is not kept here: it is empty.
    """

    user_index: int
    choices: int
    gain: float
    uncertainty: float
    start: Tensor
    mode: Tensor
    covariance: Tensor


def summary_of(known: KnownUser, user_id: str, new: bool) -> dict[str, Any]:
    """What is reported of an adapted user; `new`: who was not trained."""
    return {
        "user_id": user_id,
        "user_index": known.user_index,
        "new": new,
        "choices": known.choices,
        "told_apart": verdict(known.gain),
        "gain": known.gain,
        "uncertainty": known.uncertainty,
    }


def digest_of(prompt: Text, chosen: Text, rejected: Text) -> bytes:
    """The SHA-256 of a choice's texts."""
    return hashlib.sha256(json.dumps([prompt, chosen, rejected], sort_keys=True).encode()).digest()


def read_users_of(folder: Path, user_indices: Iterable[int] | None = None) -> dict[int, KnownUser]:
    """The adapted users of a model folder by user index: all of them, or those of `user_indices` who are.

    Raises:
        PrlhfError: the file is damaged.
    """
    return {row[0]: _user(*row) for row in stored_lines(folder / FILE, "users", "position", user_indices)}


def read_choices_of(folder: Path, user_index: int) -> list[KnownChoice]:
    """The choices of an adapted user, in the order in which they came.

    Raises:
        PrlhfError: the file is damaged.
    """
    return [_choice(*row[2:]) for row in stored_lines(folder / FILE, "choices", "rowid", [user_index])]


def stored_lines(
    path: Path, table: str, order: str, user_indices: Iterable[int] | None, columns: int = COLUMNS
) -> list[tuple[Any, ...]]:
    """The lines of a table, without their checksums: all, or those of `user_indices`.

    Raises:
        PrlhfError: a line is not what was written.
    """
    if not path.is_file():
        return []
    with opened(path) as database:
        if not has_table(database, table):
            return []
        every = f"SELECT * FROM {table}"
        found = (
            database.execute(f"{every} ORDER BY {order}").fetchall()
            if user_indices is None
            else [
                row
                for at in user_indices
                for row in database.execute(f"{every} WHERE position = ? ORDER BY {order}", (at,))
            ]
        )
    for row in found:  # lines of the first version have no checksum
        if row[columns:] not in ((), (None,), (_sum(*row[:columns]),)):
            raise damaged(path, f"a line of {table} differs from its checksum")
    return [row[:columns] for row in found]


def put_known(
    database: sqlite3.Connection, users: Iterable[KnownUser], choices: Iterable[tuple[int, KnownChoice]]
) -> None:
    """Put users, and further choices by user index, into an open database."""
    for user in users:
        put_line(database, "users", user.user_index, user.choices, user.gain, user.uncertainty,
             *map(vector_bytes, (user.start, user.mode, user.covariance)))  # fmt: skip
    for at, choice in choices:
        texts = map(_json, (choice.prompt, choice.chosen, choice.rejected))
        put_line(database, "choices", at, choice.digest, *texts, choice.margin, vector_bytes(choice.slopes))


def create_known(database: sqlite3.Connection) -> None:
    """Create the tables that an open database does not have yet; those of the first version have no checksums."""
    create_tables(database, TABLES)
    for table in ("users", "choices"):
        if "sum" not in [row[1] for row in database.execute(f"PRAGMA table_info({table})")]:
            database.execute(f"ALTER TABLE {table} ADD COLUMN sum BLOB")


def remove_known(database: sqlite3.Connection, user_index: int) -> None:
    """Remove a user with choices and versions from an open database."""
    for table in ("users", "choices", "versions"):
        database.execute(f"DELETE FROM {table} WHERE position = ?", (user_index,))


def put_line(database: sqlite3.Connection, table: str, *columns: Any) -> None:
    """Put a line into a table of an open database, with its checksum."""
    values = (*columns, _sum(*columns))
    database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def _sum(*columns: Any) -> bytes:
    return hashlib.sha256(repr(columns).encode()).digest()


def _choice(prompt: str, chosen: str, rejected: str, margin: float, slopes: bytes) -> KnownChoice:
    return KnownChoice(json.loads(prompt), json.loads(chosen), json.loads(rejected), margin, read_vector(slopes))


def _user(at: int, choices: int, gain: float, uncertainty: float, *vectors: bytes) -> KnownUser:
    start, mode, covariance = map(read_vector, vectors)
    return KnownUser(at, choices, gain, uncertainty, start, mode, covariance.view(len(mode), len(mode)))


def _json(text: Text) -> str:
    return json.dumps(text, ensure_ascii=False)


def vector_bytes(values: Tensor) -> bytes:
    """A vector or matrix as it stands in the file."""
    return values.double().contiguous().numpy().astype("<f8").tobytes()


def read_vector(raw: bytes) -> Tensor:
    """What `vector_bytes` wrote, as a vector."""
    return torch.from_numpy(np.frombuffer(raw, dtype="<f8").astype(np.float64))
