"""A data set: every user likes one of two signs at the end of a sentence."""

from __future__ import annotations

from prlhf.config import PrepConfig
from prlhf.data import data_set
from prlhf.data.rows import DropCounts, LoadedData, Row
from prlhf.progress import Progress


@data_set("signs", uses="users", defaults={"users": 2})
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Six comparisons of each user to train on, and two held-out ones."""
    users = [f"u{number}" for number in range(config.users or 2)]
    rows = [_row(number, user, place) for number in range(8) for place, user in enumerate(users)]
    train, held_out = rows[: 6 * len(users)], rows[6 * len(users) :]
    counts = DropCounts()
    counts.read.update(train=len(train), eval=len(held_out))
    return LoadedData(train, held_out, users, "made here", options={"users": len(users)}, counts=counts.report())


def _row(number: int, user: str, place: int) -> Row:
    signs = ("!", ".") if place % 2 else (".", "!")
    chosen, rejected = (f" my boss found {number} boats{sign}" for sign in signs)
    return Row(f"{number}-{user}", f"POST: {number} boats.\nTL;DR:", chosen, rejected, user)
