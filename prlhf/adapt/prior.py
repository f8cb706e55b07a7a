"""The prior of a run's users, found from its trained users when the run is adapted for the first time.

Its directions and their ratios are those of trained users' rows. Its scale is the one of most evidence: it explains
best how trained users chose where they were held out (empirical Bayes).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prlhf.adapt.slopes import margins_and_slopes
from prlhf.dataset import Comparison, is_prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Trained
from prlhf.model.fitting import Fitting
from prlhf.model.per_user import trained_on
from prlhf.model.rewards import Rewards
from prlhf.model.user_fits import Choices, fit_users
from prlhf.model.user_prior import UserPrior, prior_of, read_prior, stored_rows
from prlhf.model.user_store import read_users
from prlhf.progress import Progress

SAMPLE = 2**10  # trained users whose rows are read
USERS, EACH = 16, 8  # how many users, and how many choices of each, the scale is found from
# of that of trained users' rows; further away margins are not linear, and the fit gets worse (METHOD.md)
SCALES = tuple(2 ** (step / 2) for step in range(-4, 5))


def prior_for(
    folder: Path, first: Mapping[str, int], trained: Trained[Any], rewards: Rewards, progress: Progress
) -> tuple[UserPrior, bool]:
    """The prior of the run whose model is in `folder`, and whether it was found now and is still to be written.

    `first`: the user index of the first row of each table.

    Raises:
        PrlhfError: the rows of trained users do not differ from the generic user's.
    """
    if (known := read_prior(folder)) is not None:
        return known, False
    last = read_users(folder, ()).trained
    some = sorted(random.Random(0).sample(range(1, last + 1), min(SAMPLE, last)))
    center, rows = stored_rows(folder, first, [0])[0], stored_rows(folder, first, some)
    rows = rows[(rows != center).any(1)]
    if not len(rows):
        raise PrlhfError(
            f"no trained user of {folder} differs from the generic user, so nothing is known of new ones",
            "train longer",
        )
    prior = prior_of(rows, center)
    return prior.scaled(_scale(prior, folder, trained, rewards, progress)), True


def _scale(prior: UserPrior, folder: Path, trained: Trained[Any], rewards: Rewards, progress: Progress) -> float:
    """By how much to multiply the prior's deviations."""
    data = Path(trained_on(folder))
    if not is_prepared(data):
        progress.note(f"the run's data set is gone from {data}: the prior keeps the scale of trained users' rows")
        return 1.0
    rows = _some(read_prepared(data).eval)
    found = Fitting(True).part("held-out comparisons", rows, trained.encoder().comparison)
    if not found:
        progress.note("no held-out comparisons of trained users: the prior keeps the scale of their rows")
        return 1.0
    progress.start("reading held-out choices", len(found))
    try:
        encoded = [each for _, each in found]
        margins, slopes = margins_and_slopes(
            rewards, encoded, prior.center.repeat(len(found), 1), prior.loadings, progress
        )
    finally:
        progress.finish()
    users = list(dict.fromkeys(row.user_id for row, _ in found))
    owners = torch.tensor([users.index(row.user_id) for row, _ in found])
    return best_scale(Choices(owners, slopes, margins, len(users)))


def best_scale(choices: Choices) -> float:
    """The one of `SCALES` by which z ~ N(0, scale^2 I) explains `choices` with the most evidence."""
    # all of them are tried: from 1, expectation-maximization stops at once where a few choices say little of each user
    return max(SCALES, key=lambda scale: fit_users(choices.scaled(scale)).evidence.sum().item())


def _some(rows: list[Comparison], seed: int = 0) -> list[Comparison]:
    """Some choices of some seen users."""
    by_user: dict[str, list[Comparison]] = {}
    for row in rows:
        if row.seen:
            by_user.setdefault(row.user_id, []).append(row)
    drawn = random.Random(seed)
    users = drawn.sample(sorted(by_user), min(USERS, len(by_user)))
    return [row for user in users for row in drawn.sample(by_user[user], min(EACH, len(by_user[user])))]
