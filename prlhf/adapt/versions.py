"""What an adapted user was before: a version for each adaptation, of which the last few can be put back.

They are a table of adapted.sqlite. Version 0 is the user before any choice: the row of training, or, of somebody who
was not trained, nobody. The newest version is what the user is now; its numbers stand with those of all users.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.adapt.apart import verdict
from prlhf.adapt.known import put_line, read_users_of, read_vector, stored_lines
from prlhf.model.later_users import FILE, LaterRow, damaged

KEPT = 8  # versions of a user, the present one among them; version 0 can be put back always
COLUMNS = 9  # before the checksum


@dataclass(frozen=True)
class LearnedVersion:
    """A user as learned at `at` (UTC; empty: not known when) from so many choices; see KnownUser for the numbers.

    `numbers`: row [d], `mode` [c] and `covariance` [c, c] of a former version; None: the present one.
    """

    number: int
    at: str
    choices: int
    gain: float
    uncertainty: float
    numbers: tuple[Tensor, Tensor, Tensor] | None = None

    def summary(self) -> dict[str, Any]:
        """What is reported of it."""
        return {
            "version": self.number,
            "at": self.at or None,
            "choices": self.choices,
            "told_apart": verdict(self.gain),
            "gain": self.gain,
            "uncertainty": self.uncertainty,
        }


def read_versions(folder: Path, user_index: int) -> list[LearnedVersion]:
    """The versions of a user of a model folder that are kept, the present one last; none: the user was not adapted.

    Raises:
        PrlhfError: the file is damaged.
    """
    lines = stored_lines(folder / FILE, "versions", "number", [user_index], COLUMNS)
    if lines:
        return [_version(*line) for line in lines]
    # users that were adapted before there were versions
    known = read_users_of(folder, [user_index]).values()
    return [LearnedVersion(1, "", user.choices, user.gain, user.uncertainty) for user in known]


def _version(
    _position: int, number: int, at: str, choices: int, gain: float, uncertainty: float, *vectors: bytes | None
) -> LearnedVersion:
    row, mode, covariance = vectors
    if row is None or mode is None or covariance is None:
        return LearnedVersion(number, at, choices, gain, uncertainty)
    width = len(read_vector(mode))
    numbers = torch.from_numpy(np.frombuffer(row, dtype="<f4").astype(np.float32))
    found = numbers, read_vector(mode), read_vector(covariance).view(width, width)
    return LearnedVersion(number, at, choices, gain, uncertainty, found)


def note_version(
    database: sqlite3.Connection, user_index: int, choices: int, gain: float, uncertainty: float, now: str
) -> None:
    """Keep what a user of an open database is, before what was learned at `now` takes its place.

    Nothing is kept if the user was learned from the same choices again.
    """
    newest = database.execute(
        "SELECT number, at, choices FROM versions WHERE position = ? ORDER BY number DESC LIMIT 1", (user_index,)
    ).fetchone()
    former = database.execute("SELECT * FROM users WHERE position = ?", (user_index,)).fetchone()
    if former is None:
        number, at = 1, now
    else:
        number, at = newest[:2] if newest else (1, "")
        if former[1] != choices and _keep(database, user_index, number, at, former):
            number, at = number + 1, now
    put_line(database, "versions", user_index, number, at, choices, gain, uncertainty, None, None, None)
    database.execute("DELETE FROM versions WHERE position = ? AND number <= ?", (user_index, number - KEPT))


def _keep(database: sqlite3.Connection, user_index: int, number: int, at: str, former: tuple[Any, ...]) -> bool:
    """Keep the present numbers of a user; False: they stand among those of training, as prlhf once wrote them."""
    row = database.execute("SELECT * FROM rows WHERE position = ?", (user_index,)).fetchone()
    if row is None:
        return False
    try:
        LaterRow.read(*row)
    except ValueError as error:
        raise damaged(Path(FILE), str(error)) from error
    _, choices, gain, uncertainty, _, mode, covariance, *_ = former
    put_line(database, "versions", user_index, number, at, choices, gain, uncertainty, row[3], mode, covariance)
    return True
