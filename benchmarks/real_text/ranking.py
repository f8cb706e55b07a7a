"""Scores of held-out comparisons as numbers: accuracy, margins and NLL, per user and over users.

`scores` are rows of scores.py, of all seeds of an arm, each with its `seed`. Intervals are clustered by prompt; a mean
over users weighs every user alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.real_text.intervals import interval
from benchmarks.real_text.scores import READ_AS

Row = dict[str, Any]
Numbers = dict[str, Any]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def hit(margin: float | None) -> float | None:
    """1 for a comparison that is ranked as its user did, 0 if not, a half for a margin of exactly 0."""
    return None if margin is None else 0.5 if margin == 0 else float(margin > 0)


def ranking(scores: Sequence[Row]) -> Numbers:
    """Accuracy as oneself, as the generic and as another user, margins as oneself and NLL; over users and per user.

    Returns:
        `all` (over the users), `seen` and `unseen` where there are such users, and one entry for each user id in
        `users`. `margin` and `nll` are as oneself; `quantiles` of the margin are those of QUANTILES.
    """
    parts = {
        "all": list(scores),
        "seen": [row for row in scores if row["seen"]],
        "unseen": [row for row in scores if not row["seen"]],
    }
    users = dict.fromkeys(sorted(row["user_id"] for row in scores))
    by_user = {user: [row for row in scores if row["user_id"] == user] for user in users}
    found: Numbers = {name: _read(rows) for name, rows in parts.items() if rows}
    return found | {"users": {user: _read(rows) for user, rows in by_user.items()}}


def _read(rows: Sequence[Row]) -> Numbers:
    margins = [row["margin"]["own"] for row in rows]
    return {
        "accuracy": {name: over_users(rows, [hit(row["margin"][name]) for row in rows]) for name in READ_AS},
        "margin": over_users(rows, margins),
        "quantiles": [float(value) for value in np.quantile(margins, QUANTILES)],
        "nll": {name: over_users(rows, [row["nll"][name] for row in rows]) for name in ("own", "generic")},
    }


def over_users(rows: Sequence[Row], values: Sequence[float | None]) -> Numbers | None:
    """The mean over users of what was measured on each of the rows, with its interval."""
    return interval(values, [row["prompt_id"] for row in rows], [row["user_id"] for row in rows])


def difference(a: Sequence[Row], a_as: str, b: Sequence[Row], b_as: str) -> Numbers | None:
    """Accuracy of arm `a` read as `a_as`, less that of arm `b` read as `b_as`, over users, on what both have scored.

    Comparisons are paired, seed by seed.
    """
    other = {(row["seed"], row["id"]): hit(row["margin"][b_as]) for row in b}
    rows, values = [], []
    for row in a:
        left, right = hit(row["margin"][a_as]), other.get((row["seed"], row["id"]))
        if left is not None and right is not None:
            rows.append(row)
            values.append(left - right)
    return over_users(rows, values)
