"""Judges by name. To add one, write a subclass of `LocalJudge` or `AskingJudge` with the decorator `judge`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

from typing_extensions import override

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.extensions import JUDGES
from prlhf.judge.verdicts import Call, Decision, Pair, Verdict
from prlhf.progress import Progress
from prlhf.responses import words
from prlhf.results import CostEstimate, ShownCall

# The settings that apply whatever the judge; `Judge.uses` names the others.
ALWAYS_USED = frozenset(("judge", "out", "bootstrap", "seed", "batch_size", "calibrate", "limit", "skip_long"))


class Judge(ABC):
    """A judge of pairs, and what the rest of prlhf has to know of it."""

    metavar: ClassVar[str] = ""  # what stands after the colon of its name, as in `reward:RUN`
    argument_required: ClassVar[bool] = True  # if it takes one
    argument_is_path: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()  # the keys of JudgeConfig that it reads, besides ALWAYS_USED

    @abstractmethod
    def __init__(self, argument: str, config: JudgeConfig) -> None:
        """Make the judge ready for pairs. Raises PrlhfError if something that it needs is missing."""

    @classmethod  # noqa: B027  most judges have nothing to check
    def check(cls, name: str, config: JudgeConfig) -> None:
        """Raise PrlhfError if settings of this judge, given as `name`, contradict each other."""

    @abstractmethod
    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        """The decisions on `pairs`, in their order."""

    def settings(self) -> dict[str, Any]:
        """What the results say of this judge, besides its name."""
        return {}


class LocalJudge(Judge):
    """A judge that is a function of the pairs: it asks no server, and the order of the responses does not matter."""

    def __init__(self, argument: str, config: JudgeConfig) -> None:
        self.argument, self.config = argument, config

    @abstractmethod
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        """The verdict on each pair."""

    @override
    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        verdicts: list[Verdict] = []
        progress.start("judging", len(pairs))
        try:
            for start in range(0, len(pairs), self.config.batch_size):
                batch = list(pairs[start : start + self.config.batch_size])
                verdicts += self.verdicts(batch)
                progress.advance(len(batch))
        finally:
            progress.finish()
        return [Decision(verdict, (Call(verdict),)) for verdict in verdicts]


class AskingJudge(Judge):
    """A judge that asks a server: its calls cost money, and it may prefer the response that it is shown first."""

    @abstractmethod
    def estimate(self, pairs: Sequence[Pair]) -> CostEstimate:
        """The calls, tokens and cost of judging `pairs`. Sends nothing."""

    @abstractmethod
    def messages(self, pair: Pair) -> list[ShownCall]:
        """The calls about `pair`. Sends nothing."""


def verdicts_by_score(scores: Sequence[tuple[float, float]]) -> list[Verdict]:
    """The verdicts of scores (of A, of B): the higher one wins, equal ones tie. Raises PrlhfError for NaN."""
    for number, (a, b) in enumerate(scores):
        if math.isnan(a) or math.isnan(b):
            raise PrlhfError(f"the judge's scores of pair {number} are {a} and {b}", "check the judge on that pair")
    return ["tie" if a == b else "A" if a > b else "B" for a, b in scores]


# ---- by name ----

J = TypeVar("J", bound=type[Judge])


def judge(name: str) -> Callable[[J], J]:
    """Register the decorated class as the judge `name`."""
    return JUDGES.decorator(name)


def find_judges(config: JudgeConfig) -> dict[str, Judge]:
    """The judges that `config.judge` names, by name.

    Raises:
        PrlhfError: a name is unknown or given twice, a setting is not used by any of the judges, or one of them cannot
            be made.
    """
    if config.judge is None:
        raise PrlhfError("no judge is named", f"add --judge NAME: {', '.join(judge_names())}")
    names = [name.strip() for name in config.judge.split(",")]
    if len(set(names)) < len(names):
        raise PrlhfError(f"--judge {config.judge} names a judge twice", "name each once")
    found = {name: kind_and_argument(name) for name in names}
    refuse_unused(config, {name: kind for name, (kind, _) in found.items()})
    return {name: kind(argument, config) for name, (kind, argument) in found.items()}


def kind_and_argument(name: str) -> tuple[type[Judge], str]:
    """The class of the judge `name`, and what stands after the colon if the judge takes an argument."""
    if name in JUDGES and not JUDGES[name].metavar:
        return JUDGES[name], ""
    known, _, argument = name.partition(":")
    if known not in JUDGES or (argument and not JUDGES[known].metavar):
        raise PrlhfError(f"no judge is called '{name}'", nearest(name, judge_names()))
    kind: type[Judge] = JUDGES[known]
    if kind.argument_required and not argument:
        raise PrlhfError(f"judge '{name}' lacks its {kind.metavar}", f"write {known}:{kind.metavar}")
    return kind, argument


def judge_names() -> list[str]:
    """The names of all judges with their arguments, such as `rule:shorter` and `reward:RUN`."""
    names = []
    for name in JUDGES:
        argument = ""
        with suppress(PrlhfError):  # of a package that cannot be imported
            kind: type[Judge] = JUDGES[name]
            argument = kind.metavar
            if argument and not kind.argument_required:
                names.append(name)
        names.append(f"{name}:{argument}" if argument else name)
    return names


# ---- settings ----


def refuse_unused(config: JudgeConfig, kinds: Mapping[str, type[Judge]]) -> None:
    """Raise PrlhfError for a setting that none of the judges uses: a setting without an effect misleads."""
    used = ALWAYS_USED.union(*(kind.uses for kind in kinds.values()))
    if config.dataset == config.calibrate:
        used |= {"dataset"}
    for key in config.given():
        if key not in used:
            by = [name for name in JUDGES.ours if key in JUDGES[name].uses]
            argument = f":{JUDGES[by[0]].metavar}" if by and JUDGES[by[0]].argument_required else ""
            hint = f"use it with --judge {by[0]}{argument}, or leave it out" if by else "leave it out"
            raise not_used(config, key, f"--judge {config.judge}", hint)
    for name, kind in kinds.items():
        kind.check(name, config)


def not_used(config: JudgeConfig, key: str, by: str, hint: str) -> PrlhfError:
    """The error for a setting that has no effect together with `by`."""
    return PrlhfError(f"{key} = {getattr(config, key)} is not used by {by}", hint)


# ---- rules ----


@judge("rule:shorter")
class Shorter(LocalJudge):
    """Prefers the response with fewer words."""

    @override
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        return verdicts_by_score([(-words(p.a.response), -words(p.b.response)) for p in pairs])


@judge("rule:longer")
class Longer(LocalJudge):
    """Prefers the response with more words."""

    @override
    def verdicts(self, pairs: list[Pair]) -> list[Verdict]:
        return verdicts_by_score([(words(p.a.response), words(p.b.response)) for p in pairs])
