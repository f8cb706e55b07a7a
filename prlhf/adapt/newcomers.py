"""Unseen users of a data set, whose choices are learned from or tested: who `--few-shot` is about."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prlhf.config.judge import ALL
from prlhf.dataset import Comparison, Prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.rewards import Rewards
from prlhf.model.user_prior import UserPrior
from prlhf.progress import Progress


class Read(NamedTuple):
    """A choice, as it is and in token ids."""

    row: Comparison
    tokens: Encoded


@dataclass(frozen=True)
class Newcomer:
    """An unseen user: choices to learn from, in order, and choices that are tested."""

    user_id: str
    known: list[Read]
    tested: list[Read]


@dataclass(frozen=True)
class Evaluation:
    """What is tested: people, the run that reads their choices, and the data that it was trained on."""

    people: list[Newcomer]
    trained: Trained[Any]
    rewards: Rewards
    prior: UserPrior
    data: Path
    seed: int
    progress: Progress

    @property
    def known(self) -> list[Encoded]:
        """All choices that are learned from, one person's after the other's."""
        return [read.tokens for person in self.people for read in person.known]

    @property
    def learners(self) -> Tensor:
        """The number of the person of each choice that is learned from [n]."""
        return torch.tensor([number for number, person in enumerate(self.people) for _ in person.known])

    def first(self, count: int) -> Tensor:
        """Which choices [n] are among the first `count` of their person."""
        return torch.tensor([place < count for person in self.people for place in range(len(person.known))])

    @property
    def tested(self) -> list[Encoded]:
        """All choices that are tested, one person's after the other's."""
        return [read.tokens for person in self.people for read in person.tested]

    @property
    def owners(self) -> Tensor:
        """The number of the person of each tested choice [t]."""
        return torch.tensor([number for number, person in enumerate(self.people) for _ in person.tested])


def that_fit(trained: Trained[Any], data: Prepared, skip_long: bool, progress: Progress) -> list[list[Read]]:
    """The choices to learn from, and the held-out ones of unseen users, which fit into the context."""
    encoder, fitting = trained.encoder(), Fitting(skip_long)
    unseen = [row for row in data.eval if not row.seen]
    parts = {"choices": data.choices, "held-out comparisons": unseen}
    found = [[Read(*pair) for pair in fitting.part(name, rows, encoder.comparison)] for name, rows in parts.items()]
    fitting.check(advice="shorten them")
    encoder.note_cut(progress)
    return found


def people_of(parts: Sequence[Sequence[Read]], counts: Sequence[int], seed: int) -> list[Newcomer]:
    """The users with enough choices: the first of those to learn from, or, without these, held-out ones by the seed.

    What is tested is the same for all `counts`, and nothing that a user is learned from.

    Raises:
        PrlhfError: nobody has enough.
    """
    most, known, found = max(counts), _by_user(parts[0]), []
    for user, held_out in _by_user(parts[1]).items():
        own, tested = known.get(user, []), held_out
        if not known:
            drawn = random.Random(f"{seed}\0{user}\0few-shot").sample(held_out, len(held_out))
            own, tested = drawn[:most], drawn[most:]
        if own and len(own) >= most % ALL and tested:
            found.append(Newcomer(user, own[:most], tested))
    if not found:
        raise PrlhfError(
            f"no unseen user of the data set has {most} choices to learn from and others to be tested on",
            "prepare data with unseen users, or set few_shot to fewer",
        )
    return found


def _by_user(rows: Iterable[Read]) -> dict[str, list[Read]]:
    found: dict[str, list[Read]] = {}
    for read in rows:
        found.setdefault(read.row.user_id, []).append(read)
    return found


def others(count: int, seed: int) -> list[int]:
    """For each of `count` people another one, whose choices they get in the control; each once."""
    order = random.Random(f"{seed}\0others").sample(range(count), count)
    found = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [found[number] for number in range(count)]
