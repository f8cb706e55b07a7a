"""Who the users of a checkpoint are.

users.json can be read by anyone; with many users it is users.sqlite, where a few of a million are found without reading
all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from prlhf.errors import PrlhfError, one_line
from prlhf.parse import json_value

MANY = 1000  # users, beyond which a checkpoint is made for reading in part
PLAIN, INDEXED = "users.json", "users.sqlite"
TABLE = "CREATE TABLE users (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT)"


class _Plain(BaseModel):
    """What users.json holds."""

    ids: list[str]
    texts: dict[str, str]


@dataclass(frozen=True)
class Users:
    """Some or all seen users of a checkpoint."""

    ids: list[str]
    texts: dict[str, str]  # of those who have one
    user_indices: list[int] | None  # whose index each id has, from 1, where these are some; None: all, in order
    count: int  # of all


def write_users(folder: Path, ids: list[str], texts: dict[str, str]) -> None:
    """Position i holds the user of index i + 1. No users are there yet."""
    if len(ids) <= MANY:
        text = json.dumps({"ids": ids, "texts": texts}, ensure_ascii=False)
        (folder / PLAIN).write_text(text + "\n", encoding="utf-8")
        return
    with closing(sqlite3.connect(folder / INDEXED)) as database:
        database.execute(TABLE)
        rows = ((user_index, user, texts.get(user)) for user_index, user in enumerate(ids, start=1))
        database.executemany("INSERT INTO users VALUES (?, ?, ?)", rows)
        database.commit()


def read_users(folder: Path, wanted: Collection[str] | None = None) -> Users:
    """All users of the checkpoint; of one made for reading in part those of `wanted` that it knows, where given."""
    path = folder / INDEXED
    if not path.is_file():
        return _read_plain(folder)
    try:
        # immutable: no locks and no files beside it, on a file that nobody writes to
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            count = database.execute("SELECT max(position) FROM users").fetchone()[0]
            if wanted is None:
                rows = database.execute("SELECT * FROM users ORDER BY position").fetchall()
            else:
                one = "SELECT * FROM users WHERE id = ?"
                rows = sorted(row for user in wanted for row in database.execute(one, (user,)))
    except (sqlite3.Error, TypeError) as error:
        raise _damaged(path, one_line(error)) from error
    user_indices = None if wanted is None else [position for position, _, _ in rows]
    return Users(
        [user for _, user, _ in rows], {u: text for _, u, text in rows if text is not None}, user_indices, count
    )


def _read_plain(folder: Path) -> Users:
    path = folder / PLAIN
    try:
        users = _Plain.model_validate(json_value(path.read_bytes()))
    except FileNotFoundError as error:
        raise PrlhfError(f"{folder} lacks {PLAIN}", "train again, or use a copy") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, one_line(error)) from error
    if len(set(users.ids)) < len(users.ids):
        raise _damaged(path, "an id stands twice in it")
    return Users(users.ids, users.texts, None, len(users.ids))


def _damaged(path: Path, why: str) -> PrlhfError:
    return PrlhfError(f"{path} is damaged: {why}", "train again, or use a copy")
