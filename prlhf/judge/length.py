"""The win-rate if both sides wrote equally much, after AlpacaEval 2's length-controlled win-rate (arXiv 2404.04475).

A logistic regression of the outcome on tanh of the difference in words over its standard deviation, read off at a
difference of zero. Where length explains everything (`rule:longer`), a weak prior on both coefficients keeps it finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prlhf.judge.statistics import CONFIDENCE, Floats, Ints

PRIOR = 0.04  # one over the squared standard deviation (5, in logits) of both coefficients
STEPS = 25  # of Newton's method at most
RESAMPLES = 200  # of users; each is a regression


def length_controlled(outcomes: Ints, longer: Floats, codes: Ints, seed: int) -> dict[str, Any]:
    """Outcomes [N] (+1, 0, -1), words of A less words of B [N], users' codes [N]; a tie is half a win.

    Returns rate, low, high (95 %, clustered by user; by sample where there is one user), and `slope` in logits.
    """
    x = controls(longer)
    y = (outcomes + 1) / 2
    intercept, slope = fit(x, y, np.ones(len(y)))
    rng = np.random.default_rng(seed)
    clusters = codes if codes.max() > 0 else np.arange(len(y))
    count = int(clusters.max()) + 1
    even = np.full(count, 1 / count)
    draws = (rng.multinomial(count, even)[clusters].astype(np.float64) for _ in range(RESAMPLES))
    rates = [sigmoid(fit(x, y, weights)[0]) for weights in draws]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return {"rate": float(sigmoid(intercept)), "low": float(low), "high": float(high), "slope": float(slope)}


def controls(longer: Floats) -> Floats:
    """Differences in length [N], scaled by their spread around zero and squashed to (-1, 1)."""
    spread = float(np.sqrt(np.mean(longer**2)))
    return np.asarray(np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer)))


def fit(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Intercept and slope [2] of the weighted logistic regression of y in [0, 1] on x, by damped Newton steps."""
    columns = np.column_stack([np.ones_like(x), x])
    found = np.zeros(2)
    for _ in range(STEPS):
        p = sigmoid(columns @ found)
        gradient = columns.T @ (weights * (y - p)) - PRIOR * found
        curvature = (columns * (weights * p * (1 - p))[:, None]).T @ columns + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = float(np.abs(step).max())
        found = found + step / max(1.0, size / 2)
        if size < 1e-8:
            break
    return np.asarray(found)


def sigmoid(z: Any) -> Any:
    """1 / (1 + exp(-z)), elementwise."""
    return 1 / (1 + np.exp(-z))
