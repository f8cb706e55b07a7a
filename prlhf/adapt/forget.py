"""Forget a user: row, id, text, choices and conversations leave every file of a run, and the index stays empty.

What the shared weights took from a trained user's comparisons cannot be taken back; that needs training without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.adapt.folder import locked, rebuilt
from prlhf.adapt.known import create_known, remove_known
from prlhf.adapt.run import tables_of
from prlhf.adapt.tables import rewrite_row
from prlhf.choice_store import FILE as FEEDBACK
from prlhf.choice_store import ChoiceStore
from prlhf.errors import unknown_user
from prlhf.files import atomic_file
from prlhf.model.checkpoint import ABOUT, model_folder, read_about
from prlhf.model.hub_run import check_own
from prlhf.model.later_users import FILE, JOURNAL, copy_later, create_tables, opened, remove_later
from prlhf.model.user_prior import stored_rows
from prlhf.model.user_store import INDEXED, PLAIN, read_plain, read_users, remove_user, write_users
from prlhf.model.weights import BLOCK_SUMS, USER_MODEL, check_weights, sum_weights
from prlhf.online.candidates import forget_candidates
from prlhf.parse import json_text, json_value
from prlhf.progress import SILENT, Progress

BY_USER = "_by_user"  # what the names of tables of results end with


def forget_user(run: Path, user: str, progress: Progress = SILENT) -> dict[str, Any]:
    """Remove `user` from `run`, whether trained or adapted; the row becomes the generic user's.

    Returns:
        The summary: the user, and the index that stays empty; None: a server collected something of the user, whom the
        model did not know.

    Raises:
        PrlhfError: the run does not know the user, or it cannot be read or written.
    """
    check_own(run)
    folder = model_folder(run)
    first = tables_of(folder)
    with locked(folder.parent, progress):
        known = read_users(folder).index_of()
        collected = ChoiceStore(run / FEEDBACK).forget(user) if (run / FEEDBACK).is_file() else (0, 0)
        if user not in known and any(collected):  # who was never learned
            return {"run": str(run), "forgotten": user, "user_index": None}
        if user not in known:
            raise unknown_user(user, run, known)
        if folder != run:
            (run / "report.html").unlink(missing_ok=True)  # `prlhf runs show --html` writes it again
            _scrub(run / "results.json", user, lines=False)
            _scrub(run / "metrics.jsonl", user, lines=True)
            _scrub(run / "samples.jsonl", user, lines=True)
            forget_candidates(run, user)
        remove_from_model(folder, first, user, known[user])
    return {"run": str(run), "forgotten": user, "user_index": known[user]}


def remove_from_model(folder: Path, first: Mapping[str, int], user: str, user_index: int) -> None:
    """Write the model folder without a user, and put it in place of the old one. `first`: by `tables_of`."""
    about = read_about(folder)
    check_weights(folder, about)  # what is damaged must not get a new checksum
    of_training = user_index <= read_users(folder, ()).trained
    files = {USER_MODEL, BLOCK_SUMS, PLAIN, INDEXED, ABOUT} if of_training else set()
    with rebuilt(folder, {FILE, JOURNAL, *files}) as beside:
        if (folder / FILE).exists():
            copy_later(folder, beside)
            with opened(beside / FILE, write=True) as database:
                create_tables(database)
                create_known(database)
                remove_later(database, user_index)
                remove_known(database, user_index)
            copy_later(beside, beside)
        if of_training:
            _remove_trained(folder, beside, user)
            rewrite_row(folder / USER_MODEL, beside / USER_MODEL, first, user_index, stored_rows(folder, first, [0])[0])
            kept = {name: value for name, value in about["sha256"].items() if name not in (USER_MODEL, BLOCK_SUMS)}
            about["sha256"] = kept | sum_weights(beside, (beside / INDEXED).exists(), but=kept)
            (beside / ABOUT).write_text(json_text(about, indent=2) + "\n")


def _remove_trained(folder: Path, beside: Path, user: str) -> None:
    """Write the users of training without one of them."""
    if (folder / INDEXED).exists():
        shutil.copyfile(folder / INDEXED, beside / INDEXED)
        remove_user(beside / INDEXED, user)
        return
    users = read_plain(folder)
    ids = {at: each for each, at in users.index_of().items() if each != user}
    texts = {each: text for each, text in users.texts.items() if each != user}
    write_users(beside, [ids.get(at) for at in range(1, users.trained + 1)], texts)


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
