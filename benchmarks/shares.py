"""Shares and means with their uncertainty, and how docs/RESULTS.md writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

Numbers = dict[str, Any]


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{round(100 * share, digits) + 0.0:.{digits}f}"  # without a "-0"


def interval(found: Numbers | None) -> str:
    """Return `64 [58, 70]`: percent with the 95 % interval."""
    key = "rate" if found and "rate" in found else "share"
    return "–" if found is None else f"{percent(found[key])} [{percent(found['low'])}, {percent(found['high'])}]"


def plus_minus(found: Numbers, digits: int = 1) -> str:
    return f"{found['mean']:.{digits}f} ± {found['standard_error']:.{digits}f}"


def wilson(hits: int, of: int) -> Numbers:
    low, high = binomtest(hits, of).proportion_ci(method="wilson")
    return {"share": hits / of, "low": float(low), "high": float(high), "of": of}


def over(values: Sequence[float], seed: int = 0) -> Numbers:
    """Return the mean over users with a 95 % bootstrap interval over users."""
    data = np.asarray(values)
    means = np.random.default_rng(seed).choice(data, (2000, len(data))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"share": float(data.mean()), "low": float(low), "high": float(high)}


def mean_of(values: Sequence[float]) -> Numbers:
    data = np.asarray(values, dtype=float)
    return {"mean": float(data.mean()), "standard_error": float(data.std(ddof=1) / np.sqrt(len(data)))}
