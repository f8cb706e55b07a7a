"""How far several judges of the same pairs agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from prlhf.judge.decisions import Decision


def agreements(decided: Mapping[str, Sequence[Decision]]) -> list[dict[str, Any]]:
    """How far every two judges agree.

    For each two: pairs that both gave a verdict on, the share of equal verdicts, Cohen's kappa, and how often each
    combination came up. kappa is None where chance alone would make them agree always.
    """
    return [_agreement(a, b, decided[a], decided[b]) for a, b in combinations(decided, 2)]


def _agreement(a: str, b: str, first: Sequence[Decision], second: Sequence[Decision]) -> dict[str, Any]:
    verdicts = [(x.verdict, y.verdict) for x, y in zip(first, second, strict=True)]
    both = [pair for pair in verdicts if "unparsed" not in pair]
    same = sum(x == y for x, y in both) / len(both) if both else None
    decisive = [pair for pair in both if "tie" not in pair]
    return {
        "judges": [a, b],
        "pairs": len(both),
        "same": same,
        "same_where_both_chose": sum(x == y for x, y in decisive) / len(decisive) if decisive else None,
        "kappa": kappa(both),
        "table": {f"{x}/{y}": count for (x, y), count in sorted(Counter(both).items())},
    }


def kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two judges' verdicts."""
    if not pairs:
        return None
    n = len(pairs)
    left, right = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    chance = sum(left[name] * right[name] for name in left) / n**2
    return None if chance >= 1 else (sum(x == y for x, y in pairs) / n - chance) / (1 - chance)
