"""Write what was learned of users into a model folder: all of it in one transaction, or nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from prlhf.adapt.folder import rebuilt
from prlhf.adapt.known import KnownChoice, KnownUser, create_known, put_known
from prlhf.adapt.versions import note_version
from prlhf.files import scratch_dir, sha256
from prlhf.model.checkpoint import ABOUT, read_about
from prlhf.model.later_users import FILE, LaterRow, create_tables, opened, put_later
from prlhf.model.user_prior import UserPrior
from prlhf.model.weights import USER_PRIOR


@dataclass(frozen=True)
class Change:
    """Rows [d] by user index, ids and texts of new users, what is known of users, and their further choices."""

    rows: Mapping[int, Tensor]
    new: Mapping[int, tuple[str, str]]
    known: Sequence[KnownUser]
    choices: Sequence[tuple[int, KnownChoice]]


@contextmanager
def collected(folder: Path) -> Iterator[Callable[[Change], None]]:
    """Yield a function that puts a change aside, on disk; at the end all of them are made in `folder`.

    Readers of the run wait at that moment only. What training wrote is neither changed nor read.

    Raises:
        PrlhfError: a file is damaged, or the system refuses to write.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with scratch_dir("adapt") as scratch:
        aside = scratch / FILE
        with opened(aside, write=True) as database:
            _create(database)
            yield lambda change: _put(database, change)
        with opened(aside) as found, opened(folder / FILE, write=True) as database:
            _create(database)
            for at, choices, gain, uncertainty in found.execute(
                "SELECT position, choices, gain, uncertainty FROM users"
            ):
                note_version(database, at, choices, gain, uncertainty, now)
            put_later(database, (LaterRow.read(*row) for row in found.execute("SELECT * FROM rows")))
            for table in ("users", "choices"):
                rows = found.execute(f"SELECT * FROM {table}")
                places = ", ".join("?" * len(rows.description))
                database.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)


def _create(database: sqlite3.Connection) -> None:
    create_tables(database)
    create_known(database)


def _put(database: sqlite3.Connection, change: Change) -> None:
    for user_index, row in change.rows.items():
        user_id, text = change.new.get(user_index, (None, None))
        put_later(database, [LaterRow(user_index, row, user_id, text or None)])
    put_known(database, change.known, change.choices)


def write_prior(folder: Path, prior: UserPrior) -> None:
    """Write the prior into a model folder that has none yet, with its checksum."""
    about = read_about(folder)
    with rebuilt(folder, {ABOUT}) as beside:
        prior.save(beside)
        about["sha256"][USER_PRIOR] = sha256(beside / USER_PRIOR)
        (beside / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
