"""Write beside, then rename: a reader sees the old file or the new one, never half of either.

While it is written, what is to become NAME is called `.NAME.PID.partial`. Its writer holds a lock on it, so that what a
killed process left behind can be told from what is being written, and is removed when NAME is next written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prlhf.errors import CannotWrite, PrlhfError

LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<state>partial|old)", re.DOTALL)
SCRATCH = re.compile(r"prlhf-[a-z]+-(?P<pid>\d+)-\w+")
AT_FDCWD, RENAME_EXCHANGE = -100, 2
NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
OF_WRITING = {*FULL, errno.EROFS, errno.EIO}  # errors that reading does not meet, but for a broken disk
HINTS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    errno.EFBIG: "the file system or `ulimit -f` limits the size of a file: raise the limit",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check the permissions of the folder"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}
FULL_IN_WORDS = re.compile(
    r".*\(os error (\d+)\)|no space left on device|(?:database or )?disk is full|file too large|quota exceeded"
    r"|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+|iostream error|disk i/o error",
    re.IGNORECASE | re.DOTALL,
)  # libraries that are not Python's say it as text: safetensors, tokenizers, SQLite, torch


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; on success it takes `path`'s place, on any error it is removed.

    A symbolic link stays one: the file that it names is written. Raises PrlhfError where the system refuses to write.
    """
    real = Path(os.path.realpath(path))
    beside = _beside(real)
    with full_disk_named(path), _folders_for(real):
        sweep_leftovers(real)
        handle = _owned(beside, path, folder=False)
        try:
            yield beside
            os.replace(beside, real)
        finally:
            beside.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes `path`'s place.

    What stood there is removed: ask `folders.claim` first, or stay inside a folder of ours.

    Where the system can exchange two folders (Linux, macOS), one of them is at `path` at every moment. Elsewhere there
    is a moment between two renames without either; a kill in it leaves the old folder as `.NAME.PID.old`, which
    `put_back` returns to its place.
    """
    real = Path(os.path.realpath(path))
    beside = _beside(real)
    with full_disk_named(path), _folders_for(real):
        sweep_leftovers(real)
        handle = _owned(beside, path, folder=True)
        try:
            yield beside
            _put_in_place(beside, real)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            os.close(handle)


@contextmanager
def scratch_dir(what: str) -> Iterator[Path]:
    """A temporary folder `prlhf-WHAT-PID-…`, gone at the end; those that killed processes left are removed first."""
    for entry in os.scandir(tempfile.gettempdir()):
        found = SCRATCH.fullmatch(entry.name)
        ours = found and entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
        if found and ours and _abandoned(Path(entry.path), int(found["pid"])):
            shutil.rmtree(entry.path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"prlhf-{what}-{os.getpid()}-") as name:
        handle = _lock(Path(name))
        try:
            yield Path(name)
        finally:
            os.close(handle)


# ---- what killed writes left ----


def leftovers(path: Path) -> list[tuple[Path, str]]:
    """(path, `partial` or `old`) of what processes that are gone left when they were writing `path`."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        named = [(Path(entry.path), LEFT.fullmatch(entry.name)) for entry in entries if entry.name.startswith(".")]
        mine = [(left, found) for left, found in named if found and found["name"] == path.name]
        return [(left, found["state"]) for left, found in mine if _abandoned(left, int(found["pid"]))]
    return []


def sweep_leftovers(path: Path) -> None:
    """Remove what killed writes of `path` left; an old folder goes back first where nothing stands at `path`."""
    put_back(path)
    for left, state in leftovers(path):
        if state == "partial" or os.path.lexists(path):
            _remove(left)


def put_back(path: Path) -> None:
    """Where nothing is at `path`, return the folder that a kill between two renames left aside."""
    if not os.path.lexists(path):
        old = sorted((left for left, state in leftovers(path) if state == "old"), key=lambda left: left.stat().st_mtime)
        if old:
            os.replace(old[-1], path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _abandoned(path: Path, pid: int) -> bool:
    """Whether no process writes `path` any more: `pid` is gone and nobody, on this machine or another, has the lock."""
    if pid != os.getpid() and _alive(pid):
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial") if path.name else path


def _owned(beside: Path, path: Path, folder: bool) -> int:
    """Make `beside` and hold a lock on it; the lock's handle."""
    try:
        if folder:
            beside.mkdir()
        else:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError as error:  # the same process id in another container
        raise PrlhfError(f"{path} is being written by another process", "wait for it, or write elsewhere") from error
    return _lock(beside)


def _lock(path: Path) -> int:
    """A shared lock, which a handle for reading may have on every file system; who sweeps asks for an exclusive one."""
    handle = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: the process id alone tells
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle


# ---- renames ----


def _put_in_place(new: Path, path: Path) -> None:
    """`new` becomes `path`; what was at `path` is removed."""
    if not os.path.lexists(path):
        os.replace(new, path)
    elif not _exchange(new, path):
        _step_aside(new, path)


def _exchange(new: Path, path: Path) -> bool:
    """Exchange two folders in one step, so that the old one is at `new`; false where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE)
    elif hasattr(libc, "renamex_np"):  # macOS: RENAME_SWAP
        failed = libc.renamex_np(os.fsencode(new), os.fsencode(path), RENAME_EXCHANGE)
    else:
        return False
    if failed:
        number = ctypes.get_errno()
        if number in NO_EXCHANGE:
            return False
        raise OSError(number, os.strerror(number), str(new), None, str(path))
    return True


def _step_aside(new: Path, path: Path) -> None:
    """A folder cannot be renamed onto a full one: the old one steps aside first, and back if that fails."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _folders_for(path: Path) -> Iterator[None]:
    """Have the folders that `path` lies in; those that were made for it go again on an error, while they are empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    there = next((folder for folder in path.parents if folder.exists()), None)
    if there is not None and not there.is_dir():
        raise PrlhfError(f"cannot write {path}: {there} is a file, not a folder", "choose another place")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


# ---- refusals ----


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path`, or a file in it, into one line.

    It says which: disk full, quota, size limit, no permission, read-only, name too long. Every other error passes,
    those of reading something else included.
    """
    try:
        yield
    except PrlhfError:
        raise
    except Exception as error:
        number = write_errno(error, path)
        if number is None:
            raise
        raise CannotWrite(f"cannot write {path}: {os.strerror(number)}", HINTS.get(number, "")) from error


def write_errno(error: BaseException, path: Path) -> int | None:
    """The system's number of an error in writing `path`, or a file in it; None where `error` is another one."""
    if not isinstance(error, OSError):
        said = FULL_IN_WORDS.search(str(error))
        number = (int(said[1]) if said[1] else _unsaid()) if said else None
        return number if number in OF_WRITING else None
    named = [str(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if named and not any(_belongs(Path(os.path.realpath(name)), Path(os.path.realpath(path))) for name in named):
        return None
    if error.errno in OF_WRITING or (named and error.errno != errno.ENOENT):
        return error.errno
    return None


def _unsaid() -> int:
    """Which limit was met, where a library only says that it could not write."""
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited else errno.ENOSPC


def _belongs(name: Path, path: Path) -> bool:
    """Whether `name` is `path`, what is written beside it, in one of them, or a folder that `path` lies in."""
    beside = _beside(path)
    return name in path.parents or any(name == one or one in name.parents for one in (path, beside))


# ---- paths as users write them ----

# At the beginning, or where a path begins within a setting: `reward:~/run`, `dataset=~/a,~/b`
_HOME = re.compile(r"(?:^|(?<=[=:,]))(?:~|\$HOME|\$\{HOME\})(?=/)")


def at_home(text: str) -> str:
    """`text` with the home folder for each `~/` and `$HOME/` that a shell has left alone, as it does within quotes."""
    if text in ("~", "$HOME", "${HOME}"):
        return os.path.expanduser("~")
    return _HOME.sub(lambda _: os.path.expanduser("~"), text)
