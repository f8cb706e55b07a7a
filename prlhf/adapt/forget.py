"""Forget a user: row, id, text and choices leave every file of a run, and the index stays empty.

What the shared weights took from a trained user's comparisons cannot be taken back; that needs training without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prlhf.adapt.folder import locked
from prlhf.adapt.run import tables_of
from prlhf.adapt.writing import Change, write_change
from prlhf.errors import PrlhfError, nearest
from prlhf.files import atomic_file
from prlhf.model.checkpoint import model_folder
from prlhf.model.user_prior import stored_rows
from prlhf.model.user_store import read_users
from prlhf.parse import json_text, json_value
from prlhf.progress import SILENT, Progress

BY_USER = "_by_user"  # what the names of tables of results end with


def forget_user(run: Path, user: str, progress: Progress = SILENT) -> dict[str, Any]:
    """Remove `user` from `run`, whether trained or adapted; the row becomes the generic user's.

    Returns:
        The summary: the user, the index that stays empty, and whether the user was trained.

    Raises:
        PrlhfError: the run does not know the user, or it cannot be read or written.
    """
    folder = model_folder(run)
    first = tables_of(folder)
    with locked(folder.parent, progress):
        known = read_users(folder).index_of()
        if user not in known:
            raise PrlhfError(f"user '{user}' is unknown to {run}", nearest(user, known))
        if folder != run:
            _scrub(run / "results.json", user, lines=False)
            _scrub(run / "metrics.jsonl", user, lines=True)
            _scrub(run / "samples.jsonl", user, lines=True)
        change = Change({known[user]: stored_rows(folder, first, [0])[0]}, forgotten={known[user]: user})
        write_change(folder, first, change)
    return {"run": str(run), "forgotten": user, "user_index": known[user]}


def _scrub(path: Path, user: str, lines: bool) -> None:
    """Take the user's results out of a JSON or JSONL file."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    try:
        values = [json_value(line) for line in (text.splitlines() if lines else [text]) if line]
    except ValueError:  # a line that was cut off is not ours to repair
        return
    found = [_without(value, user) for value in values if not lines or value.get("user_id") != user]
    if found != values:
        written = "".join(json_text(value) + "\n" for value in found) if lines else json_text(found[0], indent=2) + "\n"
        with atomic_file(path) as beside:
            beside.write_text(written, encoding="utf-8")


def _without(value: Any, user: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: {one: each for one, each in part.items() if one != user}
        if key.endswith(BY_USER) and isinstance(part, dict)
        else _without(part, user)
        for key, part in value.items()
    }
