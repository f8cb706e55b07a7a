"""Who says which of two responses is better: judges by name.

A judge maps pairs to decisions. One that needs nobody's answer maps them to verdicts, and registers with one line, in
`PLAIN` or, if its name carries an argument (`reward:RUN`), in `WITH_ARGUMENT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from typing_extensions import override

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.judge.decisions import Call, Decision, Verdict
from prlhf.judge.options import refuse_unused
from prlhf.judge.pairs import Pair
from prlhf.progress import Progress
from prlhf.responses import words

Judge = Callable[[list[Pair]], list[Verdict]]
Scorer = Callable[[list[Pair]], list[tuple[float, float]]]  # a score for A and one for B; higher is better


class Decider(Protocol):
    """A judge with whatever it takes to ask it."""

    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        """The decisions on `pairs`, in their order."""

    def settings(self) -> dict[str, Any]:
        """What a reader of the results must know of this judge, beside its name."""
        ...


def find_deciders(config: JudgeConfig) -> dict[str, Decider]:
    """The judges that `config.judge` names, by name."""
    if config.judge is None:
        raise PrlhfError("no judge is named", f"add --judge NAME: {', '.join(judge_names())}")
    names = [name.strip() for name in config.judge.split(",")]
    if len(set(names)) < len(names):
        raise PrlhfError(f"--judge {config.judge} names a judge twice", "name each once")
    for name in names:
        kind, _, _ = name.partition(":")
        if kind != "llm" and kind not in WITH_ARGUMENT and name not in PLAIN:
            raise unknown_judge(name)
    refuse_unused(config, names)
    return {name: _decider(name, config) for name in names}


def _decider(name: str, config: JudgeConfig) -> Decider:
    kind, _, model = name.partition(":")
    if kind != "llm":
        return Unasked(name, config)
    from prlhf.judge.llm import LlmJudge  # brings openai

    return LlmJudge(model or config.judge_model, config)


class Unasked(Decider):
    """A judge that is a function of the pair: rules, rewards, oracles. It knows no order and no ties by doubt."""

    def __init__(self, name: str, config: JudgeConfig) -> None:
        self._judge, self._batch = find_judge(config.model_copy(update={"judge": name})), config.batch_size

    @override
    def settings(self) -> dict[str, Any]:
        return {}

    @override
    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        verdicts: list[Verdict] = []
        progress.start("judging", len(pairs))
        try:
            for start in range(0, len(pairs), self._batch):
                batch = list(pairs[start : start + self._batch])
                verdicts += self._judge(batch)
                progress.advance(len(batch))
        finally:
            progress.finish()
        return [Decision(verdict, (Call(verdict),)) for verdict in verdicts]


def find_judge(config: JudgeConfig) -> Judge:
    """The judge that `config.judge` names, one that asks nobody, ready to use."""
    name = config.judge or ""
    if name in PLAIN:
        return PLAIN[name]
    kind, _, argument = name.partition(":")
    if kind in WITH_ARGUMENT:
        metavar, make = WITH_ARGUMENT[kind]
        if not argument:
            raise PrlhfError(f"judge '{name}' lacks its {metavar}", f"write {kind}:{metavar}")
        return make(argument, config)
    raise unknown_judge(name)


def unknown_judge(name: str) -> PrlhfError:
    """The error of a name that no judge has."""
    return PrlhfError(f"no judge is called '{name}'", nearest(name, judge_names()))


def judge_names() -> list[str]:
    """Every name a judge can have, for help pages: `rule:shorter`, `reward:RUN` and so on."""
    return [*PLAIN, *(f"{kind}:{metavar}" for kind, (metavar, _) in WITH_ARGUMENT.items()), "llm", "llm:MODEL"]


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


def _oracle(dataset: str, _config: JudgeConfig) -> Judge:
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
}
