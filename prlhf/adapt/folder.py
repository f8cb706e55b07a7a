"""The model folder of a run while it is changed: one process at a time, and all files at once or none.

A new folder is written beside the old one, with links to the files that stay, and takes its place in one step.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir, link_or_copy
from prlhf.progress import SILENT, Progress

WAIT, LOOK = 3600.0, 0.05  # seconds for another process to end, and between two looks


@contextmanager
def locked(folder: Path, progress: Progress = SILENT, wait: float = WAIT) -> Iterator[None]:
    """Be the only process that changes what is in `folder`; wait for another one that does.

    Raises:
        PrlhfError: it does not end within `wait` seconds.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _take(handle, folder, progress, wait)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path, progress: Progress, wait: float) -> None:
    end, told = time.monotonic() + wait, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise PrlhfError(f"{folder} is being changed by another process", "wait for it to end") from None
            if not told:
                progress.note(f"waiting for another process that changes {folder}")
            told = True
            time.sleep(LOOK)
        except OSError:  # a file system without locks
            return
        else:
            return


@contextmanager
def rebuilt(folder: Path, without: Collection[str]) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` at the end; it has all files of the old one but those of `without`."""
    with atomic_dir(folder) as beside:
        shutil.copytree(
            folder, beside, copy_function=link_or_copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*without)
        )
        yield beside
