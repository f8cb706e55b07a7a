"""The choices that users are learned from: a file in the format of custom data."""

from __future__ import annotations

from prlhf.config import AdaptConfig, PrepConfig
from prlhf.data import custom
from prlhf.data.rows import Row
from prlhf.errors import PrlhfError, nearest
from prlhf.progress import Progress
from prlhf.source.formats import local_path


def read_choices(config: AdaptConfig, progress: Progress) -> dict[str, list[Row]]:
    """The choices of each user, users in the order of the file.

    Raises:
        PrlhfError: there is no file, a row is refused, or none is of the user who is asked for.
    """
    if config.choices is None:
        raise PrlhfError("no choices to learn from", "give a file with --choices")
    if not local_path(str(config.choices)).is_file():
        raise PrlhfError(f"there is no file {config.choices}", "give a file of choices")
    asked = PrepConfig(dataset=str(config.choices), eval_fraction=0.0, columns=config.columns, bad_rows=config.bad_rows)
    loaded = custom.load(asked, progress)
    for line in loaded.warnings:
        progress.note(f"warning: {line}")
    found: dict[str, list[Row]] = {}
    for row in loaded.train:
        found.setdefault(row.user_id, []).append(row)
    if config.user is None:
        return found
    if config.user not in found:
        raise PrlhfError(f"{config.choices} has no choices of '{config.user}'", nearest(config.user, found))
    return {config.user: found[config.user]}
