"""`prlhf users` as a function: who a run knows, and of adapted users from how many choices and how surely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prlhf.adapt.known import read_users_of, summary_of
from prlhf.adapt.versions import read_versions
from prlhf.errors import unknown_user
from prlhf.model.checkpoint import model_folder, read_about
from prlhf.model.user_store import read_users


def list_users(run: Path, user: str | None = None) -> dict[str, Any]:
    """The summary of the users of `run`: the number of trained ones, and each adapted one as `adapt` reports them.

    With `user` only this one, with the `versions` that are kept, the present one last.

    Raises:
        PrlhfError: the run cannot be read, or does not know the user.
    """
    folder = model_folder(run)
    read_about(folder)
    if user is not None:
        return {"run": str(run)} | _one(run, folder, user)
    adapted = read_users_of(folder)
    users = read_users(folder)
    ids = {user_index: user for user, user_index in users.index_of().items()}
    return {
        "run": str(run),
        "trained": len(ids) - len(adapted),
        "forgotten": users.count - len(ids),
        "adapted": [summary_of(known, ids[known.user_index], new=not len(known.start)) for known in adapted.values()],
    }


def _one(run: Path, folder: Path, user: str) -> dict[str, Any]:
    users = read_users(folder, [user])
    at = users.index_of().get(user)
    if at is None:
        raise unknown_user(user, run, read_users(folder).index_of())
    adapted = [summary_of(known, user, at > users.trained) for known in read_users_of(folder, [at]).values()]
    return {
        "trained": int(not adapted),
        "forgotten": 0,
        "adapted": adapted,
        "versions": [version.summary() for version in read_versions(folder, at)],
    }
