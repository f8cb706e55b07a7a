"""Means with 95 % intervals from a bootstrap that draws whole prompts (or users) with all that was measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prlhf.judge.statistics import CONFIDENCE, bootstrap_sums, codes_of

RESAMPLES = 2000


def interval(
    values: Sequence[float | None], clusters: Sequence[str], groups: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any] | None:
    """The mean over groups (users) of the mean of each group's values, with its interval.

    Args:
        values: [N]; None where nothing could be measured, which is left out.
        clusters: [N], what is drawn: the values of one prompt, of all seeds and users, are drawn together.
        groups: [N], the user of each value; None if all are of one.
        seed: of the bootstrap.

    Returns:
        `mean`, `low`, `high` and `of`, the number of values; None if there are none.
    """
    groups = groups or [""] * len(values)
    known = [each for each in zip(values, clusters, groups, strict=True) if each[0] is not None]
    if not known:
        return None
    measured = np.array([value for value, _, _ in known], dtype=np.float64)
    _, drawn = codes_of([cluster for _, cluster, _ in known])
    names, owners = codes_of([group for _, _, group in known])
    sums = np.zeros((drawn.max() + 1, 2, len(names)))  # of values, and how many
    np.add.at(sums, (drawn, 0, owners), measured)
    np.add.at(sums, (drawn, 1, owners), 1.0)
    resampled = bootstrap_sums(sums.reshape(len(sums), -1), RESAMPLES, seed).reshape(RESAMPLES, 2, -1)
    with np.errstate(invalid="ignore"):  # a group that was not drawn at all has no mean in this resample
        means = np.nanmean(resampled[:, 0] / resampled[:, 1], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    whole = sums.sum(axis=0)
    return {"mean": float((whole[0] / whole[1]).mean()), "low": float(low), "high": float(high), "of": len(known)}
