"""Win-rates, their intervals, whether they are significant, and their value at equal length. Pure functions of arrays.

An *outcome* is +1 if A wins, 0 for a tie and -1 if B wins. *Shares* are two fractions (won, tied). A *convention* says
what a tie is worth to A, and turns shares into a win-rate between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What a tie is worth to A. The paper uses the first on PRISM (5.3) and the second on P-SOUPS (5.2).
CONVENTIONS = {"tie_wins": 1.0, "tie_loses": 0.0, "tie_half": 0.5}
CONVENTION_NAMES = {
    "tie_wins": "ties count for both (PRISM)",
    "tie_loses": "ties are not wins (P-SOUPS)",
    "tie_half": "ties are half wins",
}
OUTCOMES = {"A": 1, "tie": 0, "B": -1}
USER_VERDICTS = {1: "win", 0: "tie", -1: "lose"}
CONFIDENCE = 0.95
BLOCK = 4_000_000  # resampled weights in memory at once (32 MB), however many users there are
LEVEL, POWER = 0.05, 0.80  # of significance tests
PRIOR = 0.04  # precision of the normal prior on both coefficients: a standard deviation of 5 logits
NEWTON_STEPS = 25
RESAMPLES = 200  # of users, for the length-controlled rate: each is a regression


def summarize(outcomes: Ints, users: list[str], resamples: int, seed: int) -> dict[str, Any]:
    """All win-rates of one set of verdicts; the order of the samples does not matter.

    Args:
        outcomes: [N], +1, 0 or -1.
        users: the user of each outcome, N names.
        resamples: the number of bootstrap resamples.
        seed: of the bootstrap.
    """
    names, codes = codes_of(users)
    verdicts = user_outcomes(outcomes, codes)
    by_sample, by_user = resampled_shares(outcomes, codes, resamples, seed)
    own = shares_by_user(outcomes, codes)
    return {
        "n_samples": len(outcomes),
        "n_users": len(names),
        "wins": int((outcomes > 0).sum()),
        "ties": int((outcomes == 0).sum()),
        "losses": int((outcomes < 0).sum()),
        "clustered_by": clustered_by(codes),
        "per_sample": {name: rate_with_interval(shares(outcomes), by_sample, name) for name in CONVENTIONS},
        "per_user": {name: rate_with_interval(shares(verdicts), by_user, name) for name in CONVENTIONS},
        "over_users": {name: mean_and_standard_error(rate(own, name)) for name in CONVENTIONS},
        "users": _user_rows(names, np.bincount(codes), verdicts, own),
    }


def half_tied_rate(outcomes: Ints, users: Sequence[str], resamples: int, seed: int) -> dict[str, float] | None:
    """The win-rate of outcomes [N] (a tie is half a win) with its interval, clustered by `users` [N]; None if N = 0."""
    if not len(outcomes):
        return None
    by_sample, _ = resampled_shares(outcomes, codes_of(users)[1], resamples, seed)
    return rate_with_interval(shares(outcomes), by_sample, "tie_half")


def mean_with_interval(values: Floats, resamples: int, seed: int) -> dict[str, float]:
    """The mean of values [U], one of each user, with its 95 % percentile interval over resampled users."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(bootstrap_sums(values[:, None], resamples, seed)[:, 0] / len(values), [tail, 1 - tail])
    return {"rate": float(values.mean()), "low": float(low), "high": float(high)}


def codes_of(users: Sequence[str]) -> tuple[list[str], Ints]:
    """The sorted names [U] of `users`, and for each of `users` [N] its place among them."""
    names, codes = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)
    return [str(name) for name in names], codes


def shares(outcomes: Ints) -> Floats:
    """The shares (won, tied) [2] of outcomes [N]."""
    return np.asarray(_won_and_tied(outcomes).mean(axis=0))


def shares_by_user(outcomes: Ints, codes: Ints) -> Floats:
    """The shares [U, 2] of each user, from outcomes [N] of the users `codes` [N]."""
    return _sum_by(codes, _won_and_tied(outcomes)) / np.bincount(codes)[:, None]


def rate(shares: Floats, convention: str) -> Floats:
    """The win-rate [...] of shares [..., 2] under a convention for ties."""
    return np.asarray(shares @ np.array([1.0, CONVENTIONS[convention]]))


def user_outcomes(outcomes: Ints, codes: Ints) -> Ints:
    """Outcomes [U] per user from outcomes [N]: +1 for a user with more wins than losses (section 5.3)."""
    return np.sign(np.bincount(codes, weights=outcomes)).astype(np.int64)


def mean_and_standard_error(values: Floats, ddof: int = 1) -> dict[str, float | None]:
    """The mean of values [U] and its standard error (None for a single value).

    Table 1 of the paper uses `ddof=0`, which is too narrow for six users.
    """
    error = float(values.std(ddof=ddof) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def rate_with_interval(estimate: Floats, resampled: Floats, convention: str) -> dict[str, float]:
    """The win-rate of the shares `estimate` [2] with the 95 % percentile interval of `resampled` shares [R, 2]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(rate(resampled, convention), [tail, 1 - tail])
    return {"rate": float(rate(estimate, convention)), "low": float(low), "high": float(high)}


def clustered_by(codes: Ints) -> str:
    """What the bootstrap draws: `user` (with all their samples), or `sample` if there is one user only."""
    return "user" if codes.max() > 0 else "sample"


def resampled_shares(outcomes: Ints, codes: Ints, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The shares of samples [R, 2] and of users [R, 2] in each of R resamples."""
    if clustered_by(codes) == "sample":
        return _resample_one_user(outcomes, resamples, seed)
    samples = _sum_by(codes, _won_and_tied(outcomes))
    users = _won_and_tied(user_outcomes(outcomes, codes))
    sums = bootstrap_sums(np.column_stack([samples, users, np.bincount(codes)]), resamples, seed)
    return sums[:, :2] / sums[:, 4:], sums[:, 2:4] / len(users)


def _resample_one_user(outcomes: Ints, resamples: int, seed: int) -> tuple[Floats, Floats]:
    sums = bootstrap_sums(_won_and_tied(np.sort(outcomes)), resamples, seed)  # sorted: the order must not matter
    lost = len(outcomes) - sums.sum(axis=1)
    return sums / len(outcomes), _won_and_tied(np.sign(sums[:, 0] - lost).astype(np.int64))


def bootstrap_sums(table: Floats, resamples: int, seed: int) -> Floats:
    """Draw C of the C rows of `table` [C, K] with replacement, R = `resamples` times; the sums of the draws [R, K]."""
    rng, clusters = np.random.default_rng(seed), len(table)
    rows = max(1, BLOCK // clusters)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    # The number of times each row is drawn is multinomial, so the sums are one matrix product.
    even = np.full(clusters, 1 / clusters)
    return np.concatenate([rng.multinomial(clusters, even, size=size) @ table for size in sizes])


def _won_and_tied(outcomes: Ints) -> Floats:
    return np.column_stack([outcomes > 0, outcomes == 0]).astype(np.float64)


def _sum_by(codes: Ints, values: Floats) -> Floats:
    """The sums [U, K] per code of values [N, K]."""
    return np.column_stack([np.bincount(codes, weights=column) for column in values.T])


def _user_rows(names: list[str], counts: Ints, verdicts: Ints, own: Floats) -> list[dict[str, Any]]:
    rates = {name: rate(own, name).tolist() for name in CONVENTIONS}
    return [
        {
            "user_id": name,
            "n_samples": int(counts[user]),
            "verdict": USER_VERDICTS[int(verdicts[user])],
            "rates": {convention: values[user] for convention, values in rates.items()},
        }
        for user, name in enumerate(names)
    ]


# ---- significance ----


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of this many wins and losses if both sides were equally good; 1.0 without either."""
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def samples_needed(rate: float, design_effect: float = 1.0) -> int | None:
    """The number of samples that tell `rate` from 1/2 (two-sided 5 %, power 80 %, normal approximation); None for 1/2.

    `design_effect`: the variance of the rate over that of as many independent samples; samples of one user are alike.
    """
    if abs(rate - 0.5) < 1e-9:
        return None
    spread = norm.ppf(1 - LEVEL / 2) * 0.5 + norm.ppf(POWER) * math.sqrt(rate * (1 - rate))
    return math.ceil(design_effect * float(spread / (rate - 0.5)) ** 2)


def significance(summary: dict[str, Any]) -> dict[str, Any]:
    """Sign tests over samples and over users, and the number of samples needed, for a result of `summarize`."""
    rate, n = summary["per_sample"]["tie_half"], summary["n_samples"]
    independent = max((summary["wins"] + summary["losses"]) / 4 / n**2, 1e-12)  # variance of independent samples
    found = ((rate["high"] - rate["low"]) / (2 * norm.ppf(1 - LEVEL / 2))) ** 2
    effect = max(1.0, found / independent) if summary["clustered_by"] == "user" else 1.0
    needed = samples_needed(rate["rate"], effect)
    verdicts = [user["verdict"] for user in summary["users"]]
    settled = not rate["low"] <= 0.5 <= rate["high"]
    return {
        "sign_test_samples": sign_test(summary["wins"], summary["losses"]),
        "sign_test_users": sign_test(verdicts.count("win"), verdicts.count("lose")),
        "design_effect": round(float(effect), 2),
        "samples_needed": needed,
        "note": "" if settled else _note(rate["rate"], n, needed),
    }


def _note(rate: float, n: int, needed: int | None) -> str:
    if needed is None:
        return f"{n} samples cannot tell A from B: they are exactly even"
    more = f"if the true rate is {100 * rate:.1f} %, about {needed:,} samples would"
    return (
        f"{n} samples are too few to tell A from B; {more}" if needed > n else f"{n} samples do not settle it; {more}"
    )


# ---- length ----


def length_controlled(outcomes: Ints, longer: Floats, codes: Ints, seed: int) -> dict[str, Any]:
    """The win-rate if both sides wrote equally much, after AlpacaEval 2 (arXiv 2404.04475).

    A logistic regression of the outcome on tanh of the scaled difference in words, evaluated at a difference of zero.
    A weak prior on both coefficients keeps it finite if length explains everything, as for `rule:longer`.

    Args:
        outcomes: [N], +1, 0 or -1; a tie is half a win.
        longer: [N], the number of words of A minus that of B.
        codes: [N], the user of each outcome, by number.
        seed: of the bootstrap.

    Returns:
        `rate`, `low` and `high` (95 %, clustered by user; by sample if there is one user), and `slope` in logits.
    """
    x = scaled_lengths(longer)
    y = (outcomes + 1) / 2
    intercept, slope = fit_logistic(x, y, np.ones(len(y)))
    rng = np.random.default_rng(seed)
    clusters = codes if codes.max() > 0 else np.arange(len(y))
    count = int(clusters.max()) + 1
    even = np.full(count, 1 / count)
    draws = (rng.multinomial(count, even)[clusters].astype(np.float64) for _ in range(RESAMPLES))
    rates = [_sigmoid(fit_logistic(x, y, weights)[0]) for weights in draws]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return {"rate": float(_sigmoid(intercept)), "low": float(low), "high": float(high), "slope": float(slope)}


def scaled_lengths(longer: Floats) -> Floats:
    """Differences in length [N], divided by their root mean square and squashed to (-1, 1)."""
    spread = float(np.sqrt(np.mean(longer**2)))
    return np.asarray(np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer)))


def fit_logistic(x: Floats, y: Floats, weights: Floats) -> Floats:
    """The intercept and slope [2] of the weighted logistic regression of y [N] in [0, 1] on x [N] (damped Newton)."""
    columns = np.column_stack([np.ones_like(x), x])
    found = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        p = _sigmoid(columns @ found)
        gradient = columns.T @ (weights * (y - p)) - PRIOR * found
        curvature = (columns * (weights * p * (1 - p))[:, None]).T @ columns + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = float(np.abs(step).max())
        found = found + step / max(1.0, size / 2)
        if size < 1e-8:
            break
    return np.asarray(found)


def _sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))
