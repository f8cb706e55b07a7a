"""Atomic writes: a reader sees the old file or the new one, never a part of either.

The new content is written to `.NAME.PID.partial` in the same folder, and then renamed to NAME. The writer holds a lock
on it, which distinguishes it from the leftovers of a killed process; these are removed by the next write of NAME.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
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
OF_WRITING = {*FULL, errno.EROFS, errno.EIO}  # reading does not raise them, unless the disk is broken
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
)  # safetensors, tokenizers, SQLite and torch raise errors of their own, which say it as text


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path in the same folder; on success it is renamed to `path`, on any error it is removed.

    If `path` is a symbolic link, the file that it points to is replaced.

    Raises:
        PrlhfError: another process writes `path`, or the system refuses to write it (CannotWrite).
    """
    with _written_beside(path, folder=False) as (beside, real):
        yield beside
        os.replace(beside, real)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a new folder in the same parent; on success it replaces `path`.

    The old folder is removed, so call `folders.claim` first, or write inside a folder of ours.

    If the system can exchange two folders (Linux, macOS), one of them is at `path` at every moment. Otherwise there
    are two renames, and for a moment neither is there; a kill at that moment leaves the old folder as `.NAME.PID.old`,
    which `put_back` renames back to `path`.

    Raises:
        PrlhfError: another process writes `path`, or the system refuses to write it (CannotWrite).
    """
    with _written_beside(path, folder=True) as (beside, real):
        yield beside
        _put_in_place(beside, real)


@contextmanager
def _written_beside(path: Path, folder: bool) -> Iterator[tuple[Path, Path]]:
    """Yield a new file or folder next to `path`, which this process owns, and the real place of `path`.

    What is still beside at the end is removed.
    """
    real = Path(os.path.realpath(path))
    beside = _beside(real)
    with full_disk_named(path), _folders_for(real):
        sweep_leftovers(real)
        handle = _owned(beside, path, folder)
        try:
            yield beside, real
        finally:
            _remove(beside)
            os.close(handle)


@contextmanager
def scratch_dir(what: str) -> Iterator[Path]:
    """Yield a temporary folder `prlhf-WHAT-PID-…` and remove it at the end, with the leftovers of killed processes."""
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


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Let other processes see that this one works on `folder`, by a lock that ends with the process."""
    handle = _lock(folder)
    try:
        yield
    finally:
        os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Whether a process works on `folder`; where the file system has no locks, it is not known, and False."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def link_or_copy(source: str, copy: str) -> str:
    """Make `copy` a hard link to the file `source`, which nobody changes in place; for shutil.copytree.

    On another device, or on a file system without links, it is a copy.
    """
    try:
        os.link(source, copy)
    except OSError:
        shutil.copy2(source, copy)
    return copy


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- leftovers of killed writes ----


def leftovers(path: Path) -> list[tuple[Path, str]]:
    """Return (leftover, `partial` or `old`) for each leftover of a killed process that was writing `path`."""
    with suppress(OSError), os.scandir(path.parent) as entries:
        named = [(Path(entry.path), LEFT.fullmatch(entry.name)) for entry in entries if entry.name.startswith(".")]
        mine = [(left, found) for left, found in named if found and found["name"] == path.name]
        return [(left, found["state"]) for left, found in mine if _abandoned(left, int(found["pid"]))]
    return []


def sweep_leftovers(path: Path) -> None:
    """Remove the leftovers of killed writes of `path`; if `path` is missing, an old folder is first renamed back."""
    put_back(path)
    for left, state in leftovers(path):
        if state == "partial" or os.path.lexists(path):
            _remove(left)


def put_back(path: Path) -> None:
    """If `path` is missing, rename the old folder back that a kill between two renames left behind."""
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
    """Whether no process writes `path`: `pid` has ended, and no process on any machine holds the lock."""
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
    """Create `beside` and lock it; returns the handle of the lock."""
    try:
        if folder:
            beside.mkdir()
        else:
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError as error:  # the same process id in another container
        raise PrlhfError(f"{path} is being written by another process", "wait for it, or write elsewhere") from error
    return _lock(beside)


def _lock(path: Path) -> int:
    """Take a shared lock, which a handle for reading can hold; `_abandoned` asks for an exclusive one."""
    handle = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: only the process id is checked
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle


# ---- renames ----


def _put_in_place(new: Path, path: Path) -> None:
    """Rename `new` to `path`; the old content of `path` is moved away for removal."""
    if not os.path.lexists(path):
        os.replace(new, path)
    elif not _exchange(new, path):
        _step_aside(new, path)


def _exchange(new: Path, path: Path) -> bool:
    """Exchange two folders in one step, so that the old one is at `new`; returns False if the system cannot."""
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
    """Rename the old folder away and then `new` to `path`, since a folder that is not empty cannot be overwritten."""
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
    """Create the parent folders of `path`; on an error, those that were created here are removed if they are empty."""
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
    """Turn the system's refusal to write `path`, or a file in it, into an error of one line.

    The refusals are: disk full, quota, size limit, no permission, read-only, and a name that is too long. Other
    errors, such as those of reading another file, are not changed.

    Raises:
        CannotWrite: the system refused to write.
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
    """Return the errno if `error` comes from writing `path` or a file in it, else None."""
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
    """Guess the limit when a library only says that it could not write: the size of a file, or the disk."""
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
    return errno.EFBIG if limited else errno.ENOSPC


def _belongs(name: Path, path: Path) -> bool:
    """Whether `name` is `path` or its partial copy, lies in one of them, or is a parent folder of `path`."""
    beside = _beside(path)
    return name in path.parents or any(name == one or one in name.parents for one in (path, beside))


# ---- paths as users write them ----

# At the start, or where a path starts within a setting: `reward:~/run`, `dataset=~/a,~/b`
_HOME = re.compile(r"(?:^|(?<=[=:,]))(?:~|\$HOME|\$\{HOME\})(?=/)")


def at_home(text: str) -> str:
    """Replace each `~/` and `$HOME/` in `text` by the home folder, where quotes kept the shell from doing it."""
    if text in ("~", "$HOME", "${HOME}"):
        return os.path.expanduser("~")
    return _HOME.sub(lambda _: os.path.expanduser("~"), text)


def cache_folder() -> Path:
    """The folder of what is kept between runs: $PRLHF_CACHE, or ~/.cache/prlhf."""
    return Path(os.environ.get("PRLHF_CACHE", Path.home() / ".cache" / "prlhf"))
