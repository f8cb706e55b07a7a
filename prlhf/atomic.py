"""Write beside, then rename: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prlhf.errors import PrlhfError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; on success it takes `path`'s place, on any error it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes `path`'s place (whatever stood there goes)."""
    path = Path(os.path.abspath(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with full_disk_named(path):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            _put_in_place(beside, path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    """A folder cannot be renamed onto a full one: the old one steps aside first, and back if that fails."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    there = path.exists()
    if there:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if there:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write (disk full, size limit, no permission) into one line."""
    try:
        yield
    except OSError as error:
        raise PrlhfError(
            f"cannot write {path}: {error.strerror or error}", "free some space or choose another place with --out"
        ) from error
