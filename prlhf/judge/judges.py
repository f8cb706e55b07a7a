"""Who says which of two responses is better: judges by name.

A judge maps pairs to verdicts. A new kind registers with one line, in `PLAIN` or, if its name carries an
argument (`reward:RUN`, later `llm:MODEL`), in `WITH_ARGUMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.judge.pairs import Pair
from prlhf.responses import words

Verdict = Literal["A", "B", "tie"]
Judge = Callable[[list[Pair]], list[Verdict]]
Scorer = Callable[[list[Pair]], list[tuple[float, float]]]  # a score for A and one for B; higher is better


def find_judge(config: JudgeConfig) -> Judge:
    """The judge that `config.judge` names, ready to use."""
    if config.judge in PLAIN:
        return PLAIN[config.judge]
    kind, _, argument = config.judge.partition(":")
    if kind in WITH_ARGUMENT:
        metavar, make = WITH_ARGUMENT[kind]
        if not argument:
            raise PrlhfError(f"judge '{config.judge}' lacks its {metavar}", f"write {kind}:{metavar}")
        return make(argument, config)
    raise PrlhfError(f"no judge is called '{config.judge}'", nearest(config.judge, judge_names()))


def judge_names() -> list[str]:
    """Every name a judge can have, for help pages: `rule:shorter`, `reward:RUN`, …"""
    return [*PLAIN, *(f"{kind}:{metavar}" for kind, (metavar, _) in WITH_ARGUMENT.items())]


def by_scorer(score: Scorer) -> Judge:
    """A judge that prefers the response with the higher score."""
    return lambda pairs: judge_by_scores(score(pairs))


def judge_by_scores(scores: list[tuple[float, float]]) -> list[Verdict]:
    """Scores of A and B to verdicts: the higher one wins, equal ones tie."""
    for number, (a, b) in enumerate(scores):
        if math.isnan(a) or math.isnan(b):
            raise PrlhfError(f"the judge's scores of pair {number} are {a} and {b}", "see what it makes of that pair")
    return ["tie" if a == b else "A" if a > b else "B" for a, b in scores]


def _shorter(pairs: list[Pair]) -> list[tuple[float, float]]:
    return [(-a, -b) for a, b in _longer(pairs)]


def _longer(pairs: list[Pair]) -> list[tuple[float, float]]:
    return [(float(words(p.a.response)), float(words(p.b.response))) for p in pairs]


def _oracle(dataset: str, config: JudgeConfig) -> Judge:
    from prlhf.judge.oracle import oracle_judge

    return oracle_judge(dataset)


def _reward(run: str, config: JudgeConfig) -> Judge:
    from prlhf.judge.reward import reward_scorer  # brings torch

    return by_scorer(reward_scorer(run, config))


PLAIN: dict[str, Judge] = {
    "rule:shorter": by_scorer(_shorter),
    "rule:longer": by_scorer(_longer),
}
# kind -> (what its argument is called, maker from argument and config). Makers import their models when called.
WITH_ARGUMENT: dict[str, tuple[str, Callable[[str, JudgeConfig], Judge]]] = {
    "oracle": ("DATASET", _oracle),
    "reward": ("RUN", _reward),
    # "llm": ("MODEL", llm_judge),  # prlhf/judge/llm.py: any OpenAI-compatible server
}
