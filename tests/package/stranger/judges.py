"""A judge: counts a letter."""

from __future__ import annotations

from typing_extensions import override

from prlhf.judge.judges import LocalJudge, judge, verdicts_by_score
from prlhf.judge.verdicts import Pair, Verdict


@judge("letter")
class Letter(LocalJudge):
    """`letter:X` prefers the response with more X."""

    metavar = "X"

    @override
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        return verdicts_by_score([tuple(side.response.count(self.argument) for side in (p.a, p.b)) for p in pairs])
