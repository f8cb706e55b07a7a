"""`prlhf users` as a function: who a run knows, and of adapted users from how many choices and how surely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prlhf.adapt.known import read_users_of, summary_of
from prlhf.model.checkpoint import model_folder, read_about
from prlhf.model.user_store import read_users


def list_users(run: Path) -> dict[str, Any]:
    """The summary of the users of `run`: the number of trained ones, and each adapted one as `adapt` reports them.

    Raises:
        PrlhfError: the run cannot be read.
    """
    folder = model_folder(run)
    read_about(folder)
    adapted = read_users_of(folder)
    users = read_users(folder)
    ids = {user_index: user for user, user_index in users.index_of().items()}
    return {
        "run": str(run),
        "trained": len(ids) - len(adapted),
        "forgotten": users.count - len(ids),
        "adapted": [summary_of(known, ids[known.user_index], new=not len(known.start)) for known in adapted.values()],
    }
