"""Win-rates and how far they can be trusted. Pure functions of arrays; they know nothing of files or judges.

An *outcome* is +1 where A wins, 0 for a tie, -1 where B wins. *Shares* are (won, tied), a fraction each; a
convention says what a tie is worth, and so turns shares into a win-rate between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What a tie is worth to A. The paper uses the first on PRISM (5.3) and the second on P-SOUPS (5.2).
CONVENTIONS = {"tie_wins": 1.0, "tie_loses": 0.0, "tie_half": 0.5}
CONVENTION_NAMES = {
    "tie_wins": "tie counts for both (PRISM)",
    "tie_loses": "tie is no win (P-SOUPS)",
    "tie_half": "tie is half a win",
}
OUTCOMES = {"A": 1, "tie": 0, "B": -1}
USER_VERDICTS = {1: "win", 0: "tie", -1: "lose"}
CONFIDENCE = 0.95
BLOCK = 4_000_000  # resampled weights held at once: 32 MB, however many users there are


def summarize(outcomes: Ints, users: list[str], resamples: int, seed: int) -> dict[str, Any]:
    """Everything reported about one set of verdicts; the order of the samples does not matter.

    outcomes: [N]; users: the user of each outcome, N names.
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
    """The rate at which outcomes [N] are won, a tie half, with its interval clustered by `users` [N]; None for none."""
    if not len(outcomes):
        return None
    by_sample, _ = resampled_shares(outcomes, codes_of(users)[1], resamples, seed)
    return rate_with_interval(shares(outcomes), by_sample, "tie_half")


def codes_of(users: Sequence[str]) -> tuple[list[str], Ints]:
    """Names [U], sorted, and for each of `users` [N] which of them it is."""
    names, codes = np.unique(np.asarray(users, dtype=np.str_), return_inverse=True)
    return [str(name) for name in names], codes


def shares(outcomes: Ints) -> Floats:
    """[N] outcomes to the shares (won, tied), [2]."""
    return np.asarray(_won_and_tied(outcomes).mean(axis=0))


def shares_by_user(outcomes: Ints, codes: Ints) -> Floats:
    """[N] outcomes of users `codes` [N] to each user's own shares, [U, 2]."""
    return _sum_by(codes, _won_and_tied(outcomes)) / np.bincount(codes)[:, None]


def rate(shares: Floats, convention: str) -> Floats:
    """Shares [..., 2] to the win-rate [...] under a tie convention."""
    return np.asarray(shares @ np.array([1.0, CONVENTIONS[convention]]))


def user_outcomes(outcomes: Ints, codes: Ints) -> Ints:
    """[N] to [U]: a user is won where that user's wins outnumber the losses (per-user win-rate, section 5.3)."""
    return np.sign(np.bincount(codes, weights=outcomes)).astype(np.int64)


def mean_and_standard_error(values: Floats, ddof: int = 1) -> dict[str, float | None]:
    """Mean of [U] values and the standard error of that mean; None for a single value.

    Table 1 of the paper has `ddof=0`, which is too narrow for six users.
    """
    error = float(values.std(ddof=ddof) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def rate_with_interval(estimate: Floats, resampled: Floats, convention: str) -> dict[str, float]:
    """The rate of shares [2], and the 95 % percentile interval of resampled shares [R, 2]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(rate(resampled, convention), [tail, 1 - tail])
    return {"rate": float(rate(estimate, convention)), "low": float(low), "high": float(high)}


def clustered_by(codes: Ints) -> str:
    """What the bootstrap draws: users, each with all their samples; or samples, where there is one user."""
    return "user" if codes.max() > 0 else "sample"


def resampled_shares(outcomes: Ints, codes: Ints, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Shares of samples [R, 2] and of users [R, 2] in R resamples."""
    if clustered_by(codes) == "sample":
        return _resample_one_user(outcomes, resamples, seed)
    samples = _sum_by(codes, _won_and_tied(outcomes))
    users = _won_and_tied(user_outcomes(outcomes, codes))
    sums = bootstrap_sums(np.column_stack([samples, users, np.bincount(codes)]), resamples, seed)
    return sums[:, :2] / sums[:, 4:], sums[:, 2:4] / len(users)


def _resample_one_user(outcomes: Ints, resamples: int, seed: int) -> tuple[Floats, Floats]:
    sums = bootstrap_sums(_won_and_tied(np.sort(outcomes)), resamples, seed)  # sorted: order is not to matter
    lost = len(outcomes) - sums.sum(axis=1)
    return sums / len(outcomes), _won_and_tied(np.sign(sums[:, 0] - lost).astype(np.int64))


def bootstrap_sums(table: Floats, resamples: int, seed: int) -> Floats:
    """Draw C of the C rows of `table` [C, K] with replacement, `resamples` times; sums over the draws, [R, K]."""
    rng, clusters = np.random.default_rng(seed), len(table)
    rows = max(1, BLOCK // clusters)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    # How often each row is drawn is multinomial, so the sums are one product of matrices.
    even = np.full(clusters, 1 / clusters)
    return np.concatenate([rng.multinomial(clusters, even, size=size) @ table for size in sizes])


def _won_and_tied(outcomes: Ints) -> Floats:
    return np.column_stack([outcomes > 0, outcomes == 0]).astype(np.float64)


def _sum_by(codes: Ints, values: Floats) -> Floats:
    """[N, K] values to their sums per code, [U, K]."""
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
