"""General ability in numbers: accuracy, perplexity, and what they lose, each with an interval over items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prlhf.config import JudgeConfig
from prlhf.judge.general.likelihoods import Scores
from prlhf.judge.statistics import CONFIDENCE, bootstrap_sums

Floats = NDArray[np.float64]
Measure = tuple[Callable[[Scores], tuple[Floats, Floats]], Callable[[Floats], Floats]]


def _per_question(values: Floats) -> tuple[Floats, Floats]:
    return values, np.ones_like(values)


# name -> (numerator and denominator of each item, what their ratio of sums becomes)
MEASURES: dict[str, Measure] = {
    "acc": (lambda one: _per_question(one.right), lambda ratio: ratio),
    "acc_norm": (lambda one: _per_question(one.right_by_length), lambda ratio: ratio),
    "perplexity": (lambda one: (one.nats, one.tokens), np.exp),
    "bits_per_byte": (lambda one: (one.nats, one.sizes), lambda ratio: ratio / np.log(2)),
    "byte_perplexity": (lambda one: (one.nats, one.sizes), np.exp),
    "word_perplexity": (lambda one: (one.nats, one.words), np.exp),
}


def costs(base: Scores, generic: Scores, users: Mapping[str, Scores], config: JudgeConfig) -> dict[str, Any]:
    """The numbers of the base, of the generic user, of each user and the mean over users, each with its interval.

    `against_base` and `against_generic` are differences on the same items. Of perplexity and bits per byte, more is
    worse.
    """

    def row(readers: Sequence[Scores]) -> dict[str, Any]:
        own, other = _resampled(readers, config), {"against_base": base, "against_generic": generic}
        against = {name: _less(own, _resampled([one], config)) for name, one in other.items() if readers[0] is not one}
        return {name: _estimate(*values) for name, values in own.items()} | against

    readings = {"base": row([base]), "generic": row([generic])}
    del readings["base"]["against_generic"]
    if users:
        readings["users"] = row(list(users.values()))
    return {"readings": readings, "by_user": {user: row([one]) for user, one in users.items()}}


Resampled = dict[str, tuple[Floats, Floats]]  # of each measure: its value, and what it is in each resample [R]


def _resampled(readers: Sequence[Scores], config: JudgeConfig) -> Resampled:
    """The mean of each measure over `readers`, where there are items of its kind.

    The same seed draws the same items for all, so that differences are paired.
    """
    found = {}
    for name, (parts, finish) in MEASURES.items():
        columns = np.column_stack([column for one in readers for column in parts(one)])
        if len(columns):
            whole, drawn = columns.sum(axis=0), bootstrap_sums(columns, config.bootstrap, config.seed)
            found[name] = finish(whole[::2] / whole[1::2]).mean(), finish(drawn[:, ::2] / drawn[:, 1::2]).mean(axis=1)
    return found


def _less(a: Resampled, b: Resampled) -> dict[str, dict[str, float]]:
    """Each measure of `a` less that of `b`."""
    return {name: _estimate(a[name][0] - b[name][0], a[name][1] - b[name][1]) for name in a}


def _estimate(value: Any, drawn: Floats) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return {"value": float(value), "low": float(low), "high": float(high)}
