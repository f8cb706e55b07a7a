"""Put back what an adapted user was before, in a run that may be served meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prlhf.adapt.folder import locked
from prlhf.adapt.forget import remove_from_model
from prlhf.adapt.known import create_known, put_known, read_users_of, remove_known
from prlhf.adapt.run import tables_of
from prlhf.adapt.versions import LearnedVersion, read_versions
from prlhf.choice_store import FILE as FEEDBACK
from prlhf.choice_store import ChoiceStore
from prlhf.errors import PrlhfError, unknown_user
from prlhf.model.checkpoint import model_folder
from prlhf.model.hub_run import check_own
from prlhf.model.later_users import FILE, LaterRow, create_tables, opened, put_later
from prlhf.model.user_store import read_users
from prlhf.progress import SILENT, Progress


def undo_adaptation(
    run: Path, user: str, version: int | None = None, feedback: Path | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Make `user` what a former version was; what came after it, and the choices it was learned from, leave the model.

    Args:
        run: a run, or a model without one.
        user: somebody who was adapted.
        version: its number; None: the one before the present one.
        feedback: the choices that a server collected, of which those are set aside. None: those in the run, if any.
        progress: receives a note if another process has to be waited for.

    Returns:
        The summary: the user, the version that holds now, with what is known of it, and how many choices were undone.

    Raises:
        PrlhfError: the run does not know the user, has no such version, or cannot be read or written.
    """
    check_own(run)
    folder = model_folder(run)
    first = tables_of(folder)
    with locked(folder.parent, progress):
        users = read_users(folder, [user])
        at = users.index_of().get(user)
        if at is None:
            raise unknown_user(user, run, read_users(folder).index_of())
        versions = read_versions(folder, at)
        found = wanted(user, versions, version)
        if found is not None:
            _restore(folder, at, found)
        elif at <= users.trained:
            _as_trained(folder, at)
        else:
            remove_from_model(folder, first, user, at)
        number = found.number if found else 0
        store = feedback or run / FEEDBACK
        if store.is_file():
            ChoiceStore(store).set_aside(user, number)
    undone = versions[-1].choices - (found.choices if found else 0)
    told = found.summary() if found else {"version": 0, "at": None, "choices": 0}
    return {"run": str(run), "user_id": user, "user_index": at, **told, "undone": undone}


def wanted(user: str, versions: list[LearnedVersion], number: int | None) -> LearnedVersion | None:
    """The former version `number`, or the last one; None for version 0.

    Raises:
        PrlhfError: there is no such one.
    """
    if not versions:
        raise PrlhfError(f"'{user}' was not adapted", "there is nothing to put back")
    former = {each.number: each for each in versions[:-1] if each.numbers is not None}
    if number is None:
        number = max(former, default=0)
    if number not in former and number != 0:
        there = ", ".join(map(str, [0, *former]))
        raise PrlhfError(f"no former version {number} of '{user}' is kept", f"give one of these: {there}")
    return former.get(number)


def _restore(folder: Path, user_index: int, version: LearnedVersion) -> None:
    """Put a former version back, with the choices that it was learned from alone."""
    assert version.numbers is not None
    row, mode, covariance = version.numbers
    known = replace(
        read_users_of(folder, [user_index])[user_index],
        choices=version.choices, gain=version.gain, uncertainty=version.uncertainty, mode=mode, covariance=covariance,
    )  # fmt: skip
    with opened(folder / FILE, write=True) as database:
        put_later(database, [LaterRow(user_index, row)])
        put_known(database, [known], [])
        of_user = "choices WHERE position = ?"
        later = f"SELECT rowid FROM {of_user} ORDER BY rowid LIMIT -1 OFFSET ?"  # they stand as they came
        database.execute(f"DELETE FROM choices WHERE rowid IN ({later})", (user_index, version.choices))
        gone = "DELETE FROM versions WHERE position = ? AND number > ?"
        database.execute(gone, (user_index, version.number))


def _as_trained(folder: Path, user_index: int) -> None:
    """Put back the row that training wrote."""
    start = read_users_of(folder, [user_index])[user_index].start
    with opened(folder / FILE, write=True) as database:
        create_tables(database)
        create_known(database)
        put_later(database, [LaterRow(user_index, start.float())])
        remove_known(database, user_index)
