"""Checkpoints of a run in progress: sealed when they are complete, checked before a run resumes from one.

checkpoints/checkpoint-50     after optimizer step 50; checkpoints/checkpoint-TRY-50 if written by Ray's workers
  *.safetensors               the trained weights; of users' tables the rows that training has moved
  optimizer.pt                AdamW's moments
  scheduler.pt                the learning-rate schedule
  rng_state_RANK.pth          the random state of each worker
  state.json                  the step, and how many there are
  metrics.jsonl               the log up to this step; samples.jsonl likewise
  candidates/                 with online-dpo, grpo and rloo: the rounds that were written so far
  best/                       with stop_metric: the weights of the best evaluation, see early_stopping.py
  sha256.json                 the seal, written last: a checksum of every other file
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file, full_disk_named, sha256
from prlhf.model import workers
from prlhf.parse import json_value
from prlhf.progress import SILENT, Progress

_SUMS = TypeAdapter(dict[str, str])
SEAL, STATE = "sha256.json", "state.json"
BEST = "best"  # see early_stopping.py


@contextmanager
def writing(checkpoint: Path) -> Iterator[None]:
    """Write the files of `checkpoint`, which is made; on an error it is removed, so that it takes no space.

    Raises CannotWrite if the system refuses to write.
    """
    (checkpoint / SEAL).unlink(missing_ok=True)
    try:
        with full_disk_named(checkpoint):
            checkpoint.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        shutil.rmtree(checkpoint, ignore_errors=True)
        with suppress(OSError):
            checkpoint.parent.rmdir()
        raise


def write_state(checkpoint: Path, moments: dict[str, Any], schedule: dict[str, Any], step: int, steps: int) -> None:
    """Write the state of optimizer and schedule after `step` of `steps`."""
    torch.save(moments, checkpoint / "optimizer.pt")
    torch.save(schedule, checkpoint / "scheduler.pt")
    (checkpoint / STATE).write_text(json.dumps({"step": step, "steps": steps}) + "\n")


def read_state(checkpoint: Path, mmap: bool = False) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What `write_state` wrote: moments, schedule and step. `mmap`: moments are read from disk as they are used."""
    moments, schedule = (
        torch.load(checkpoint / name, map_location="cpu", weights_only=True, mmap=mmap)
        for name in ("optimizer.pt", "scheduler.pt")
    )
    return moments, schedule, json.loads((checkpoint / STATE).read_text())["step"]


def write_random_state(checkpoint: Path) -> None:
    """Write this worker's random state, on which dropout depends."""
    state = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, checkpoint / random_state_name())


def read_random_state(checkpoint: Path) -> dict[str, Tensor] | None:
    """This worker's random state; None if fewer workers wrote the checkpoint."""
    path = checkpoint / random_state_name()
    return torch.load(path, weights_only=True) if path.exists() else None


def set_random_state(state: dict[str, Tensor]) -> None:
    """Continue with the random numbers that follow `state`."""
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def random_state_name() -> str:
    """The file of this worker's random state."""
    return f"rng_state_{workers.rank()}.pth"


def seal(checkpoint: Path, logs: Iterable[Path], keep: int) -> None:
    """Declare `checkpoint` complete, with a copy of those `logs` that there are.

    Then remove older ones, except the `keep` newest.
    """
    for log in logs:
        if log.exists():
            shutil.copyfile(log, checkpoint / log.name)
    sums = {str(path.relative_to(checkpoint)): sha256(path) for path in _files(checkpoint)}
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
    """What is wrong with a sealed checkpoint: empty if nothing is, None if it was never sealed."""
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
        if sha256(path) != expected:
            return f"{name} has changed"
    return ""


def newest_checkpoint(folder: Path, progress: Progress = SILENT) -> Path | None:
    """The newest complete checkpoint of the run in `folder`.

    A damaged one is named and skipped; one that was being written when the run was killed is skipped in silence.

    Raises:
        PrlhfError: an earlier version of prlhf wrote it.
    """
    found = sorted((folder / "checkpoints").glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in found:
        why = fault(checkpoint)
        if why == "":
            if not (checkpoint / STATE).is_file():
                raise PrlhfError(
                    f"{checkpoint} was written by an earlier version of prlhf", "train again into a new folder"
                )
            return checkpoint
        if why:
            progress.note(f"warning: {checkpoint} is damaged ({why}): resuming from the one before it")
    return None


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which `checkpoint` was saved. Raises PrlhfError."""
    number = checkpoint.name.rpartition("-")[2]
    if not number.isdigit():
        raise PrlhfError(f"{checkpoint} is not a checkpoint of prlhf", "move it away")
    return int(number)


def remove_checkpoints(folder: Path, after: int = -1) -> None:
    """Remove the checkpoints of the run in `folder` that come `after` that step, and nothing else beside them.

    With all of them the best weights are removed.
    """
    for checkpoint in _numbered(folder / "checkpoints"):
        if step_of(checkpoint) > after:
            _remove(checkpoint)
    if after < 0:
        shutil.rmtree(folder / "checkpoints" / BEST, ignore_errors=True)
    with suppress(OSError):
        (folder / "checkpoints").rmdir()


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, complete or not."""
    return [c for c in folder.glob("checkpoint-*") if c.is_dir() and c.name.rpartition("-")[2].isdigit()]


def _remove(checkpoint: Path) -> None:
    """Remove the seal first: if the process is killed then, the rest is not taken for a damaged checkpoint."""
    with suppress(OSError):
        (checkpoint / SEAL).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEAL)
