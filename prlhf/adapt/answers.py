"""The file of a user's answers: choices in the format of custom data, each on disk as soon as it is given."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from prlhf.data.rows import Row
from prlhf.errors import PrlhfError
from prlhf.files import full_disk_named
from prlhf.folders import claim_file
from prlhf.parse import json_text, json_value
from prlhf.progress import SILENT, Progress
from prlhf.source.formats import form

BEGINNING = b'{"prompt": '  # of each line that is written here


class Answers:
    """A file of choices to which this process alone adds."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._ends: list[int] = []  # of the file, before each answer that was added here

    def add(self, rows: Sequence[Row]) -> None:
        """Write the choices of one answer, all of them or none.

        Raises:
            CannotWrite: the system refuses.
        """
        end = self._file.seek(0, os.SEEK_END)
        lines = "".join(json_text(_columns(row), ensure_ascii=False) + "\n" for row in rows).encode()
        with full_disk_named(self.path):
            try:
                if self._file.write(lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
        self._ends.append(end)

    def undo(self) -> None:
        """Take back the last answer that was added here."""
        self._file.truncate(self._ends.pop())
        os.fsync(self._file.fileno())

    @property
    def empty(self) -> bool:
        """Whether there are no choices, of anybody."""
        return self._file.seek(0, os.SEEK_END) == 0


@contextmanager
def open_answers(path: Path, progress: Progress = SILENT) -> Iterator[Answers]:
    """Open a file of choices, or begin a new one, which does not stay if it is empty.

    Raises:
        PrlhfError: it is not JSONL, cannot be written, or another process asks questions with it.
    """
    if form(path) != ".jsonl":
        raise PrlhfError(f"answers are not written to {path}", "give a file NAME.jsonl")
    claim_file(path)
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with full_disk_named(path), path.open("r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrlhfError(f"{path} is used by another process that asks questions", "give another file") from None
        except OSError:  # a file system without locks
            pass
        _close_last_line(path, file, progress)
        answers = Answers(path, file)
        try:
            yield answers
        finally:
            if answers.empty:
                path.unlink(missing_ok=True)


def _close_last_line(path: Path, file: BinaryIO, progress: Progress) -> None:
    """Give the last line its end, or cut it off if the machine stopped while it was written.

    Raises PrlhfError if that line was not written here.
    """
    text = file.read()
    start = text.rfind(b"\n") + 1
    if not text[start:]:
        return
    try:
        json_value(text[start:])
    except ValueError:
        last = text[start:]
        if not (last.startswith(BEGINNING) or BEGINNING.startswith(last)):
            raise PrlhfError(f"the last line of {path} is not JSON", "give another file") from None
        progress.note(f"the last line of {path} was cut off, and is left out")
        file.truncate(start)
    else:
        file.write(b"\n")


def _columns(row: Row) -> dict[str, object]:
    columns: dict[str, object] = {
        "prompt": row.prompt,
        "chosen": row.chosen,
        "rejected": row.rejected,
        "user_id": row.user_id,
    }
    return columns | ({"user_text": row.user_text} if row.user_text else {})
