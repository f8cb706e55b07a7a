"""A batch of comparisons as forward passes: what has to be read, by whom, and where each term finds its values."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.encoding import Encoded, Rows
from prlhf.model.engine import Engine
from prlhf.model.prefix_tree import Pack
from prlhf.model.scoring import readings_of

WeightedTerm = tuple[float, list[int]]  # its weight, and as whom each comparison is read


@dataclass(frozen=True)
class Share:
    """What one term has in a part: its comparisons, and where [2, n] the values of their chosen and rejected are."""

    term: int
    weight: float
    comparisons: list[Encoded]
    where: Tensor


@dataclass(frozen=True)
class Part:
    """One forward pass of a batch. Parts add up to the batch's loss, so each can have its backward pass at once."""

    layout: Rows | Pack
    shares: list[Share]


def weighted_terms(config: TrainConfig, batch: Sequence[Encoded]) -> list[WeightedTerm]:
    """The objective's terms as (weight, `user_index` that reads each comparison); terms of weight 0 are left out.

    With a uniform user model both terms are the same, so one of weight 1 stands for both.
    """
    users, generic = [e.user_index for e in batch], [0] * len(batch)
    if config.user_model == "uniform":
        return [(1.0, users)]
    terms = [(config.alpha, users), (1.0 - config.alpha, generic)]
    return [(weight, user_indices) for weight, user_indices in terms if weight > 0]


def parts_of(engine: Engine, batch: Sequence[Encoded], terms: Sequence[WeightedTerm]) -> Iterator[Part]:
    """Every reading once, whatever terms and comparisons need it: the generic user's are shared by all users."""
    wanted = [readings_of(batch, user_indices) for _, user_indices in terms]
    distinct = list(dict.fromkeys(reading for readings in wanted for reading in readings))
    for numbers, layout in engine.parts(distinct, engine.model.users.tokens):
        place = {distinct[number]: i for i, number in enumerate(numbers)}
        shares = []
        for term, (weight, _) in enumerate(terms):
            chosen, rejected = wanted[term][: len(batch)], wanted[term][len(batch) :]
            here = [i for i, reading in enumerate(chosen) if reading in place]  # and so is the rejected one
            if here:
                where = torch.tensor([[place[side[i]] for i in here] for side in (chosen, rejected)])
                shares.append(Share(term, weight, [batch[i] for i in here], where))
        yield Part(layout, shares)


class ByPrompt(Sampler[int]):
    """Comparisons in random order, those of one prompt next to each other, so that a batch shares their prompts.

    `prompts` [n] says which prompt each comparison is of. Every epoch has an order of its own, the same for the same
    seed.
    """

    def __init__(self, prompts: Sequence[str], seed: int) -> None:
        self._prompts, self._seed, self._epoch = prompts, seed, 0

    def __len__(self) -> int:
        return len(self._prompts)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of that epoch."""
        self._epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")
        order = rng.sample(range(len(self)), len(self))
        place = {prompt: rng.random() for prompt in sorted(set(self._prompts))}
        return iter(sorted(order, key=lambda i: place[self._prompts[i]]))
