"""One LoRA adapter per user on disk: a run for each user, in a folder named by user index, since ids may hold anything.

per_user.json    the data set and the users' ids (position i has user index i + 1)
users/1 ...      their runs
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
    """What a folder of adapters per user says about them."""

    dataset: str  # folder of the prepared data set with all users' comparisons
    users: list[str]


def folder_for(dataset: str) -> Path:
    """The folder for the adapters if --out is not given."""
    return Path("runs") / f"{Path(dataset).name}-per-user"


def is_per_user(folder: Path) -> bool:
    """Whether `folder` holds adapters per user."""
    return (folder / PER_USER).is_file()


def trained_on(run: Path) -> str:
    """The data set that a run, or the runs of a folder of adapters per user, were trained on."""
    return read_per_user(run).dataset if is_per_user(run) else str(read_about(model_folder(run))["train"]["dataset"])


def run_of(folder: Path, user_index: int) -> Path:
    """The run folder of the user of `user_index`, from 1."""
    return folder / "users" / str(user_index)


def user_runs(folder: Path) -> list[Path]:
    """The runs of all users; none if `folder` does not hold adapters per user."""
    users = read_per_user(folder).users if is_per_user(folder) else []
    return [run_of(folder, user_index) for user_index in range(1, len(users) + 1)]


def write_per_user(folder: Path, content: PerUser) -> None:
    """Mark `folder` as one with adapters per user."""
    with atomic_file(folder / PER_USER) as beside:
        beside.write_text(json.dumps(asdict(content), ensure_ascii=False) + "\n", encoding="utf-8")


def read_per_user(folder: Path) -> PerUser:
    """What `folder` says about its adapters per user. Raises PrlhfError if it is damaged."""
    path = folder / PER_USER
    try:
        content = TypeAdapter(PerUser).validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise PrlhfError(
            f"cannot read {path}: {one_line(error)}", "continue with `prlhf train --resume`, or train again"
        ) from error
    return content
