"""What a run keeps of adapted users: their choices, margins and slopes at the start, and the posterior.

It is adapted.sqlite in the model folder, apart from everything else, so that nothing of one user stands in another's
rows. Vectors are float64 in little-endian bytes. A user's choices are removed with the user.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.adapt.apart import verdict
from prlhf.dataset import Text
from prlhf.errors import PrlhfError, one_line

FILE = "adapted.sqlite"
TABLES = """
CREATE TABLE users (position INTEGER PRIMARY KEY, choices INTEGER NOT NULL, gain REAL NOT NULL,
  uncertainty REAL NOT NULL, start BLOB NOT NULL, mode BLOB NOT NULL, covariance BLOB NOT NULL);
CREATE TABLE choices (position INTEGER NOT NULL, digest BLOB NOT NULL, prompt TEXT NOT NULL, chosen TEXT NOT NULL,
  rejected TEXT NOT NULL, margin REAL NOT NULL, slopes BLOB NOT NULL, PRIMARY KEY (position, digest));
"""


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


@contextmanager
def _opened(path: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    name = str(path) if write else f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(name, uri=not write)) as database:
            yield database
    except sqlite3.DatabaseError as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "use a copy of the run") from error


def read_users_of(folder: Path, user_indices: Iterable[int] | None = None) -> dict[int, KnownUser]:
    """The adapted users of a model folder by user index: all of them, or those of `user_indices` who are."""
    path = folder / FILE
    if not path.is_file():
        return {}
    with _opened(path) as database:
        every = "SELECT * FROM users"
        rows = (
            database.execute(f"{every} ORDER BY position").fetchall()
            if user_indices is None
            else [row for at in user_indices for row in database.execute(f"{every} WHERE position = ?", (at,))]
        )
    return {row[0]: _user(*row) for row in rows}


def read_choices_of(folder: Path, user_index: int) -> list[KnownChoice]:
    """The choices of an adapted user, in the order in which they came."""
    if not (folder / FILE).is_file():
        return []
    with _opened(folder / FILE) as database:
        rows = database.execute(
            "SELECT prompt, chosen, rejected, margin, slopes FROM choices WHERE position = ? ORDER BY rowid",
            (user_index,),
        ).fetchall()
    return [_choice(*row) for row in rows]


def write_known(path: Path, users: Sequence[KnownUser], choices: Iterable[tuple[int, KnownChoice]]) -> None:
    """Put users, and further choices by user index, into a file in place; it is created if it is missing."""
    new = not path.exists()
    with _opened(path, write=True) as database:
        if new:
            database.executescript(TABLES)
        database.executemany("INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?, ?, ?, ?)", map(_columns, users))
        texts = (
            (at, c.digest, *map(_json, (c.prompt, c.chosen, c.rejected)), c.margin, _bytes(c.slopes))
            for at, c in choices
        )
        database.executemany("INSERT INTO choices VALUES (?, ?, ?, ?, ?, ?, ?)", texts)
        database.commit()


def remove_known(path: Path, user_index: int) -> None:
    """Remove a user and the user's choices from a file in place, so that no byte of them stays."""
    with _opened(path, write=True) as database:
        database.execute("PRAGMA secure_delete = ON")
        for table in ("users", "choices"):
            database.execute(f"DELETE FROM {table} WHERE position = ?", (user_index,))
        database.commit()
        database.execute("VACUUM")


def _choice(prompt: str, chosen: str, rejected: str, margin: float, slopes: bytes) -> KnownChoice:
    return KnownChoice(json.loads(prompt), json.loads(chosen), json.loads(rejected), margin, _vector(slopes))


def _user(at: int, choices: int, gain: float, uncertainty: float, *vectors: bytes) -> KnownUser:
    start, mode, covariance = map(_vector, vectors)
    return KnownUser(at, choices, gain, uncertainty, start, mode, covariance.view(len(mode), len(mode)))


def _columns(user: KnownUser) -> tuple[Any, ...]:
    vectors = map(_bytes, (user.start, user.mode, user.covariance))
    return user.user_index, user.choices, user.gain, user.uncertainty, *vectors


def _json(text: Text) -> str:
    return json.dumps(text, ensure_ascii=False)


def _bytes(values: Tensor) -> bytes:
    return values.double().contiguous().numpy().astype("<f8").tobytes()


def _vector(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, dtype="<f8").astype(np.float64))
