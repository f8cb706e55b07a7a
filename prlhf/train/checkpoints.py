"""Checkpoints of a run in progress: sealed when they are whole, checked before a run goes on from one.

checkpoints/checkpoint-50             as Trainer names them; checkpoints/checkpoint-TRY-50 as written by Ray's workers
  sha256.json                         the seal, written last: a checksum of every file there
  metrics.jsonl                       what had been logged by then
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import TypeAdapter

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file, full_disk_named
from prlhf.parse import json_value
from prlhf.progress import SILENT, Progress

_SUMS = TypeAdapter(dict[str, str])
SEAL, METRICS = "sha256.json", "metrics.jsonl"


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """Write the files of `checkpoint`, without its seal; on an error it is removed, to take no room.

    Raises CannotWrite where the system refuses to write.
    """
    (checkpoint / SEAL).unlink(missing_ok=True)
    try:
        with full_disk_named(checkpoint):
            yield
    except BaseException:
        shutil.rmtree(checkpoint, ignore_errors=True)
        with suppress(OSError):
            checkpoint.parent.rmdir()
        raise


def seal(checkpoint: Path, metrics: Path, keep: int) -> None:
    """Declare `checkpoint` whole; the log goes with it. Only now older ones go, but for the `keep` newest."""
    if metrics.exists():
        shutil.copyfile(metrics, checkpoint / METRICS)
    sums = {str(path.relative_to(checkpoint)): _sha256(path) for path in _files(checkpoint)}
    with atomic_file(checkpoint / SEAL) as beside:
        beside.write_text(json.dumps(sums, indent=1) + "\n")
    newest, whole = step_of(checkpoint), []
    for other in _numbered(checkpoint.parent):
        if (other / SEAL).exists() and step_of(other) <= newest:  # a later one was found damaged
            whole.append(other)
        else:
            _remove(other)
    for other in sorted(whole, key=step_of)[:-keep]:
        _remove(other)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a sealed checkpoint; empty where nothing is, None where it was never sealed."""
    try:
        sums = _SUMS.validate_python(json_value((checkpoint / SEAL).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return f"{SEAL} cannot be read"
    for name, expected in sums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} has changed"
    return ""


def newest_checkpoint(folder: Path, progress: Progress = SILENT) -> Path | None:
    """The newest whole checkpoint of the run in `folder`.

    One that was damaged is named and passed over; one that a kill left half-written was never there.
    """
    found = sorted((folder / "checkpoints").glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in found:
        why = fault(checkpoint)
        if why == "":
            return checkpoint
        if why:
            progress.note(f"warning: {checkpoint} is damaged ({why}): going on from the one before it")
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which `checkpoint` was saved. Raises PrlhfError."""
    number = checkpoint.name.rpartition("-")[2]
    if not number.isdigit():
        raise PrlhfError(f"{checkpoint} is no checkpoint of ours", "move it away")
    return int(number)


def is_last(checkpoint: Path) -> bool:
    """Whether nothing was left to train when it was written."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return bool(state["global_step"] >= state["max_steps"])


def remove_checkpoints(folder: Path, after: int = -1) -> None:
    """Remove the checkpoints `after` that step of the run in `folder`, and nothing that others put beside them."""
    for checkpoint in _numbered(folder / "checkpoints"):
        if step_of(checkpoint) > after:
            _remove(checkpoint)
    with suppress(OSError):
        (folder / "checkpoints").rmdir()


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not."""
    return [c for c in folder.glob("checkpoint-*") if c.is_dir() and c.name.rpartition("-")[2].isdigit()]


def _remove(checkpoint: Path) -> None:
    """The seal goes first: what a kill leaves of the rest is not taken for a damaged checkpoint."""
    with suppress(OSError):
        (checkpoint / SEAL).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
