"""Measures of responses as numbers: what each user was written, and whether it is more to their taste than another's.

`rows` are those of measures.py, of all seeds of an arm, each with its `seed`. Intervals are clustered by prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.real_text.intervals import interval

Row = dict[str, Any]
Numbers = dict[str, Any]
LIKE_LENGTH = 10  # samples of the base that an average at some length needs at least


def written(rows: Sequence[Row], curve: Sequence[float]) -> Numbers:
    """The means of all measures of one user's responses; `perplexity` is over the base's own, see `base_curve`."""
    prompts = [row["prompt_id"] for row in rows]

    def mean(values: Iterable[float | None]) -> Numbers | None:
        return interval(list(values), prompts)

    names = ("words", "letters", "warm", "repeated", "ended")
    excess = mean(log_perplexity_ratio(row["nll"], curve) for row in rows)
    ratio = excess and {name: float(np.exp(excess[name])) for name in ("mean", "low", "high")} | {"of": excess["of"]}
    empty = sum(not row["words"] for row in rows)
    return {name: mean(row[name] for row in rows) for name in names} | {"perplexity": ratio, "empty": empty}


def base_curve(samples: Sequence[Sequence[float]]) -> list[float]:
    """The base's mean NLL per token over the first n tokens of its own samples, for n = 1, 2, ...

    Args:
        samples: the NLL of each token of each sample, in nats.

    Returns:
        For each n the mean over the samples that have n tokens at least; up to the n that LIKE_LENGTH samples have.
    """
    means = [np.cumsum(sample) / np.arange(1, len(sample) + 1) for sample in samples if sample]
    found: list[float] = []
    for n in range(max(map(len, means), default=0)):
        have = [each[n] for each in means if len(each) > n]
        if len(have) < min(LIKE_LENGTH, len(means)):
            break
        found.append(float(np.mean(have)))
    return found


def log_perplexity_ratio(nll: Sequence[float], curve: Sequence[float]) -> float | None:
    """The log of a response's perplexity over that of the base's samples of its length; None for an empty response.

    A response that is longer than the curve is compared with the curve's end.
    """
    if not nll or not curve:
        return None
    return float(np.mean(nll)) - curve[min(len(nll), len(curve)) - 1]


def pole_difference(rows: Sequence[Row], measure: str, less: str, more: str) -> Numbers | None:
    """The measure of the user who likes more of it, less that of the one who likes less, prompt by prompt."""
    pairs = _paired(rows, more, rows, less)
    values = [None if a[measure] is None or b[measure] is None else a[measure] - b[measure] for a, b in pairs]
    return interval(values, [a["prompt_id"] for a, _ in pairs])


def win_share(rows: Sequence[Row], user: str, others: Sequence[Row], other: str, rule: tuple[str, int]) -> Any:
    """How often the response for `user` wins against that for `other` by the rule of `user`; a tie is half a win."""
    pairs = _paired(rows, user, others, other)
    return interval([wins(a, b, rule) for a, b in pairs], [a["prompt_id"] for a, _ in pairs])


def wins(a: Row, b: Row, rule: tuple[str, int]) -> float:
    """1 if response `a` has more (-1: less) of the rule's measure than `b`, 0 if less, 1/2 for a tie.

    A response on which the measure is not defined, such as an empty one, loses.
    """
    measure, sign = rule
    left, right = (-np.inf if row[measure] is None or not row["words"] else sign * row[measure] for row in (a, b))
    return 0.5 if left == right else float(left > right)


def _paired(a: Sequence[Row], user: str, b: Sequence[Row], other: str) -> list[tuple[Row, Row]]:
    """The rows of `a` for `user`, each with that of `b` for `other` to the same prompt and of the same seed."""
    there: Mapping[Any, Row] = {(row["seed"], row["prompt_id"]): row for row in b if row["user_id"] == other}
    mine = [row for row in a if row["user_id"] == user]
    return [(row, there[key]) for row in mine if (key := (row["seed"], row["prompt_id"])) in there]
