"""Whether a win-rate says anything: a sign test, and how many samples it would take. Pure functions of counts."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import binomtest, norm

LEVEL, POWER = 0.05, 0.80


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of as uneven a split if both sides were as good; ties say nothing. 1.0 where nothing was decided."""
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def samples_needed(rate: float, design_effect: float = 1.0) -> int | None:
    """Samples to tell `rate` from a half (two-sided 5 %, power 80 %, normal approximation); None for a half itself.

    `design_effect`: how much more a rate varies than that of as many independent samples would, because a user's
    samples are alike.
    """
    if abs(rate - 0.5) < 1e-9:
        return None
    spread = norm.ppf(1 - LEVEL / 2) * 0.5 + norm.ppf(POWER) * math.sqrt(rate * (1 - rate))
    return math.ceil(design_effect * float(spread / (rate - 0.5)) ** 2)


def significance(summary: dict[str, Any]) -> dict[str, Any]:
    """What `statistics.summarize` found, weighed: sign tests over samples and over users, and a word on the size."""
    rate, n = summary["per_sample"]["tie_half"], summary["n_samples"]
    independent = max((summary["wins"] + summary["losses"]) / 4 / n**2, 1e-12)  # variance if samples were
    found = ((rate["high"] - rate["low"]) / (2 * norm.ppf(1 - LEVEL / 2))) ** 2
    effect = max(1.0, found / independent) if summary["clustered_by"] == "user" else 1.0
    needed = samples_needed(rate["rate"], effect)
    verdicts = [user["verdict"] for user in summary["users"]]
    settled = not rate["low"] <= 0.5 <= rate["high"]
    return {
        "sign_test_samples": sign_test(summary["wins"], summary["losses"]),
        "sign_test_users": sign_test(verdicts.count("win"), verdicts.count("lose")),
        "design_effect": round(effect, 2),
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
