"""Choices that a server collected, kept in SQLite beside the model of a run: what was accepted survives a kill.

If that was asked for, requests and responses stand there too.

Several processes may use the file at the same time: a server, an export, `prlhf adapt --forget`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prlhf.dataset import Text
from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file
from prlhf.parse import json_text

FILE = "feedback.sqlite"
WAIT = 10.0  # seconds for another process that writes
# Each brings the file to the next version, which it has in `user_version`.
MIGRATIONS = (
    "CREATE TABLE choices (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, prompt TEXT NOT NULL, "
    "chosen TEXT NOT NULL, rejected TEXT NOT NULL, at TEXT NOT NULL, tried INTEGER NOT NULL DEFAULT 0, "
    "learned INTEGER NOT NULL DEFAULT 0); CREATE INDEX of_users ON choices (user_id, tried);",
    # the version of the user that was learned from a choice first, and whether it was undone
    "ALTER TABLE choices ADD COLUMN version INTEGER NOT NULL DEFAULT 0; "
    "ALTER TABLE choices ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;",
    "CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT NOT NULL, prompt TEXT NOT NULL, "
    "responses TEXT NOT NULL, at TEXT NOT NULL); CREATE INDEX conversations_of ON conversations (user_id);",
)


@dataclass(frozen=True)
class KeptChoice:
    """A choice of a user. `at`: when it came, in UTC; `learned`: 1 if the user was learned from it, otherwise 0.

    `aside`: 1 if what was learned from it was undone, and the user is not learned from it again.
    """

    number: int
    user_id: str
    prompt: Text
    chosen: str
    rejected: str
    at: str
    learned: int
    aside: int

    def row(self) -> dict[str, Any]:
        """The choice as a row of custom data."""
        answers: dict[str, Any] = {"chosen": self.chosen, "rejected": self.rejected}
        if not isinstance(self.prompt, str):
            answers = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
        return {"prompt": self.prompt, **answers, "user_id": self.user_id}


@dataclass(frozen=True)
class KeptConversation:
    """A request of a user, text or messages, and what was written. `at`: when it had been, in UTC."""

    user_id: str
    at: str
    prompt: Text
    responses: list[str]


class ChoiceStore:
    """The choices in the file `path`, which is made if it is missing and `make` is true."""

    def __init__(self, path: Path, make: bool = True) -> None:
        """Raises PrlhfError: there is no such file, or it is damaged, another's, or of a later version of prlhf."""
        self.path = path
        if not make and not path.is_file():
            raise PrlhfError(f"there is no feedback at {path}", "give a run that was served and got some")
        with self._opened() as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "choices" not in tables:
                raise PrlhfError(f"{path} is a database of something else", "choose another file")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise PrlhfError(f"{path} was written by a later version of prlhf", "update prlhf")
            for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, statements.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {number}")

    def add(self, user: str, prompt: Text, chosen: str, rejected: str) -> int:
        """Keep a choice; returns its number. When this returns, it is on disk."""
        values = user, json.dumps(prompt, ensure_ascii=False), chosen, rejected, datetime.now(UTC).isoformat()
        with self._opened() as database:
            columns = "user_id, prompt, chosen, rejected, at"
            return database.execute(f"INSERT INTO choices ({columns}) VALUES (?, ?, ?, ?, ?)", values).lastrowid or 0

    def counts(self, user: str) -> tuple[int, int]:
        """How many choices of `user` there are, and of how many of them the user is learned."""
        with self._opened() as database:
            asked = "SELECT count(*), coalesce(sum(learned AND NOT aside), 0) FROM choices WHERE user_id = ?"
            found: tuple[int, int] = database.execute(asked, (user,)).fetchone()
            return found

    def untried(self, user: str) -> int:
        """How many choices of `user` there are from which nobody has tried to learn them."""
        with self._opened() as database:
            asked = "SELECT count(*) FROM choices WHERE user_id = ? AND tried = 0"
            return int(database.execute(asked, (user,)).fetchone()[0])

    def due(self, every: int) -> list[str]:
        """The users with at least `every` choices from which nobody has tried to learn them."""
        with self._opened() as database:
            asked = "SELECT user_id FROM choices WHERE tried = 0 GROUP BY user_id HAVING count(*) >= ? ORDER BY min(id)"
            return [user for (user,) in database.execute(asked, (every,))]

    def choices(self, user: str | None = None) -> list[KeptChoice]:
        """All choices, or those of `user`, in the order in which they came."""
        columns = "id, user_id, prompt, chosen, rejected, at, learned, aside"
        asked = f"SELECT {columns} FROM choices WHERE ?1 IS NULL OR user_id = ?1 ORDER BY id"
        with self._opened() as database:
            rows = database.execute(asked, (user,)).fetchall()
        return [KeptChoice(number, who, json.loads(prompt), *rest) for number, who, prompt, *rest in rows]

    def mark(self, numbers: Sequence[int], version: int | None) -> None:
        """Note that this version of their user was learned from these choices, or that it failed (None)."""
        learned = "UPDATE choices SET tried = 1, version = CASE learned WHEN 1 THEN version ELSE ?2 END, learned = 1"
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            for number in numbers:
                if version is None:
                    database.execute("UPDATE choices SET tried = 1 WHERE id = ?", (number,))
                else:
                    database.execute(f"{learned} WHERE id = ?1", (number, version))

    def set_aside(self, user: str, version: int) -> None:
        """The user is again what `version` was: what was learned later (0: ever) is not learned again."""
        undone = "UPDATE choices SET aside = 1 WHERE user_id = ? AND learned AND (version > ? OR ? = 0)"
        with self._opened() as database:
            database.execute(undone, (user, version, version))

    def forget(self, user: str) -> tuple[int, int]:
        """Remove the choices and conversations of `user`, so that no byte stays; returns how many there were."""
        with self._opened() as database:
            database.execute("PRAGMA secure_delete = ON")
            choices = database.execute("DELETE FROM choices WHERE user_id = ?", (user,)).rowcount
            conversations = database.execute("DELETE FROM conversations WHERE user_id = ?", (user,)).rowcount
        with self._opened() as database:
            database.execute("VACUUM")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return choices, conversations

    # ---- conversations ----

    def log(self, user: str, asked: Sequence[tuple[Text, list[str]]]) -> None:
        """Keep prompts of a request, and what was written to each."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [(user, json.dumps(prompt, ensure_ascii=False), json.dumps(texts, ensure_ascii=False), at)
                for prompt, texts in asked]  # fmt: skip
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            columns = "user_id, prompt, responses, at"
            database.executemany(f"INSERT INTO conversations ({columns}) VALUES (?, ?, ?, ?)", rows)

    def conversations(self, user: str | None = None) -> Iterator[KeptConversation]:
        """Yield all conversations, or those of `user`, in the order in which they ended."""
        columns = "user_id, at, prompt, responses"
        asked = f"SELECT {columns} FROM conversations WHERE ?1 IS NULL OR user_id = ?1 ORDER BY id"
        with self._opened() as database:
            for who, at, prompt, responses in database.execute(asked, (user,)):
                yield KeptConversation(who, at, json.loads(prompt), json.loads(responses))

    def talkers(self, user: str | None = None) -> list[tuple[str, int, str]]:
        """(user, number of conversations, when the last one ended) of all users, or of `user`."""
        asked = "SELECT user_id, count(*), max(at) FROM conversations WHERE ?1 IS NULL OR user_id = ?1"
        with self._opened() as database:
            return database.execute(f"{asked} GROUP BY user_id ORDER BY user_id", (user,)).fetchall()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection in which each statement is committed, durably, when it has ended, or all at the end of BEGIN."""
        try:
            with closing(sqlite3.connect(self.path, WAIT, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = FULL")
                yield database
                if database.in_transaction:
                    database.execute("COMMIT")
        except sqlite3.Error as error:
            raise PrlhfError(
                f"cannot use {self.path}: {one_line(error)}", "check the file, its folder and disk"
            ) from error


def export_choices(feedback: ChoiceStore, out: Path, user: str | None = None, undone: bool = True) -> int:
    """Write choices as custom data, a JSONL file for `prlhf prep` and `prlhf adapt`; returns how many.

    `undone`: those too of which what was learned was undone.

    Raises:
        PrlhfError: there are none, or the file cannot be written.
    """
    choices = [choice for choice in feedback.choices(user) if undone or not choice.aside]
    if not choices:
        whose = "" if user is None else f" of '{user}'"
        raise PrlhfError(f"{feedback.path} has no choices{whose}", "collect some first")
    with atomic_file(out) as beside:
        text = "".join(json_text(choice.row(), ensure_ascii=False) + "\n" for choice in choices)
        beside.write_text(text, encoding="utf-8")
    return len(choices)


def export_conversations(feedback: ChoiceStore, out: Path, user: str | None = None) -> int:
    """Write conversations to a JSONL file; returns how many.

    Raises:
        PrlhfError: there are none, or the file cannot be written.
    """
    if not feedback.talkers(user):
        whose = "" if user is None else f" of '{user}'"
        raise PrlhfError(
            f"{feedback.path} has no conversations{whose}", "serve it with log_conversations = true to keep them"
        )
    with atomic_file(out) as beside, beside.open("w", encoding="utf-8") as file:
        return sum(
            bool(file.write(json_text(asdict(each), ensure_ascii=False) + "\n"))
            for each in feedback.conversations(user)
        )
