"""How good is a judge? `--calibrate DATASET` compares it with people; several judges are compared with each other.

The judge sees held-out comparisons, with the chosen response as A throughout. It reads each in both orders (or in a
random one), so that a preference for the first place does not help it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.config import JudgeConfig
from prlhf.dataset import Comparison, Text, read_prepared
from prlhf.errors import PrlhfError
from prlhf.judge.statistics import OUTCOMES, half_tied_rate, sign_test
from prlhf.judge.verdicts import Decision, Pair, position_bias, sample
from prlhf.responses import Response


def human_pairs(dataset: Path, config: JudgeConfig) -> list[Pair]:
    """The held-out comparisons as pairs, A the chosen response; at most `config.limit`, drawn by the seed.

    Raises PrlhfError if there are none, or if `config.order` would always show A first.
    """
    if config.order == "ab":
        raise PrlhfError("--order ab would show the chosen response first in every call", "calibrate with --order both")
    comparisons = read_prepared(dataset).eval
    if not comparisons:
        raise PrlhfError(f"{dataset} has no held-out comparisons", "prepare it with an eval split")
    return [_pair(comparison) for comparison in sample(comparisons, config.limit, config.seed)]


def calibration(pairs: Sequence[Pair], decisions: Sequence[Decision], config: JudgeConfig) -> dict[str, Any]:
    """The accuracy of a judge on `human_pairs` (a tie is half right), over all users and by kind of user.

    Pairs without a verdict count as `unparsed` and are in no accuracy.
    """
    judged = [(pair, d) for pair, d in zip(pairs, decisions, strict=True) if d.verdict != "unparsed"]
    kinds = sorted({pair.kind for pair in pairs})
    verdicts = [d.verdict for d in decisions]
    return {
        "comparisons": len(pairs),
        "right": verdicts.count("A"),
        "wrong": verdicts.count("B"),
        "ties": verdicts.count("tie"),
        "unparsed": verdicts.count("unparsed"),
        "accuracy": _accuracy(judged, config),
        "accuracy_by_kind": {kind: _accuracy([one for one in judged if one[0].kind == kind], config) for kind in kinds},
        "sign_test": sign_test(verdicts.count("A"), verdicts.count("B")),
        "position_bias": position_bias(decisions),
    }


def _accuracy(judged: Sequence[tuple[Pair, Decision]], config: JudgeConfig) -> dict[str, float] | None:
    outcomes = np.array([OUTCOMES[d.verdict] for _, d in judged], dtype=np.int64)
    return half_tied_rate(outcomes, [pair.user_id for pair, _ in judged], config.bootstrap, config.seed)


def _pair(row: Comparison) -> Pair:
    def response(text: Text) -> Response:
        plain = text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)
        return Response(row.prompt_id, row.user_id, row.user_index, row.prompt, plain, 0, 0, "stop", {})

    return Pair(row.prompt_id, row.user_id, row.user_index, row.prompt, response(row.chosen), response(row.rejected))


# ---- agreement ----


def agreements(decided: Mapping[str, Sequence[Decision]]) -> list[dict[str, Any]]:
    """The agreement of every two judges on the same pairs.

    For each two: the number of pairs on which both have a verdict, the share of equal verdicts, Cohen's kappa, and the
    count of each combination. kappa is None if chance alone would make them agree always.
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
    """Cohen's kappa of two judges' verdicts; None if there are none, or if chance alone explains all agreement."""
    if not pairs:
        return None
    n = len(pairs)
    left, right = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    chance = sum(left[name] * right[name] for name in left) / n**2
    return None if chance >= 1 else (sum(x == y for x, y in pairs) / n - chance) / (1 - chance)
