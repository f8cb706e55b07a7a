"""`--calibrate DATASET`: how often does the judge choose as the people did whose comparisons were held out?

The chosen response is A throughout; both orders are read (or a random one), so that a judge who likes the first place
gains nothing by it. A judge's win-rates are worth what it gets right here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.config import JudgeConfig
from prlhf.dataset import Comparison, Text, read_prepared
from prlhf.errors import PrlhfError
from prlhf.judge.decisions import Decision, position_bias
from prlhf.judge.pairs import Pair, some
from prlhf.judge.significance import sign_test
from prlhf.judge.statistics import OUTCOMES, half_tied_rate
from prlhf.responses import Response


def human_pairs(dataset: Path, config: JudgeConfig) -> list[Pair]:
    """The held-out comparisons as pairs, A the chosen response; at most `config.limit`, drawn by the seed."""
    if config.order == "ab":
        raise PrlhfError("--order ab would show the chosen response first in every call", "calibrate with --order both")
    rows = read_prepared(dataset).eval
    if not rows:
        raise PrlhfError(f"{dataset} has no held-out comparisons", "prepare it with an eval split")
    return [_pair(row) for row in some(rows, config.limit, config.seed)]


def calibration(pairs: Sequence[Pair], decisions: Sequence[Decision], config: JudgeConfig) -> dict[str, Any]:
    """Accuracy (a tie is half right) with its interval, for all and by kind of user, and what was left undecided."""
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
        said = text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)
        return Response(row.prompt_id, row.user_id, row.user_index, row.prompt, said, 0, 0, "stop", {})

    return Pair(row.prompt_id, row.user_id, row.user_index, row.prompt, response(row.chosen), response(row.rejected))
