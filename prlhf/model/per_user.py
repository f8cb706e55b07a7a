"""One LoRA adapter per user on disk: a run of its own for each, in a folder named by index (ids may hold anything).

per_user.json    the data set and the users' ids (position i has index i + 1)
users/1 ...      a run each, in the order of the users
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file
from prlhf.model.checkpoint import model_folder, read_about
from prlhf.parse import json_value

PER_USER = "per_user.json"


@dataclass(frozen=True)
class PerUser:
    """What a folder of adapters, one per user, is about."""

    dataset: str  # folder of the prepared data set that all users' comparisons came from
    users: list[str]


def folder_for(dataset: str) -> Path:
    """Where the adapters go that no --out was given for."""
    return Path("runs") / f"{Path(dataset).name}-per-user"


def is_per_user(folder: Path) -> bool:
    """Whether `folder` holds adapters per user."""
    return (folder / PER_USER).is_file()


def trained_on(run: Path) -> str:
    """The data set that the run, or the runs per user, were trained on."""
    return read_per_user(run).dataset if is_per_user(run) else str(read_about(model_folder(run))["train"]["dataset"])


def run_of(folder: Path, user_index: int) -> Path:
    """The run folder of the user of `user_index`, from 1."""
    return folder / "users" / str(user_index)


def write_per_user(folder: Path, content: PerUser) -> None:
    """Mark `folder` as one that holds adapters per user."""
    with atomic_file(folder / PER_USER) as beside:
        beside.write_text(json.dumps(asdict(content), ensure_ascii=False) + "\n", encoding="utf-8")


def read_per_user(folder: Path) -> PerUser:
    """What `folder` says of its adapters per user. Raises PrlhfError."""
    path = folder / PER_USER
    try:
        content = TypeAdapter(PerUser).validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise PrlhfError(
            f"cannot read {path}: {one_line(error)}", "go on with `prlhf train --resume`, or train again"
        ) from error
    return content
