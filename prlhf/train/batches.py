"""The rows of each optimizer step, and the forward passes of a batch: what the model reads, and as whom."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Sampler
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.config.train import ONLINE
from prlhf.model.engine import Engine
from prlhf.model.prefix_tree import Pack
from prlhf.model.readings import Rows
from prlhf.train.encode import EncodedSet
from prlhf.train.objectives import Objective


def steps_per_epoch(config: TrainConfig, rows: int) -> int:
    """Optimizer steps in one pass over `rows` rows; the last one may be of fewer batches."""
    return math.ceil(math.ceil(rows / config.batch_size) / config.accumulation)


def step_count(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a run over `rows` training rows."""
    if ONLINE.holds(config):
        return config.rounds * config.round_steps
    return config.max_steps or math.ceil(config.epochs * steps_per_epoch(config, rows))


def epoch_of(config: TrainConfig, rows: int, step: int) -> float:
    """Epochs completed after optimizer step number `step`, counted in batches."""
    batches = math.ceil(rows / config.batch_size)
    epoch, done = divmod(step - 1, steps_per_epoch(config, rows))
    return epoch + min((done + 1) * config.accumulation, batches) / batches


def batches_of(data: EncodedSet, config: TrainConfig) -> Iterator[list[list[Any]]]:
    """The batches of one optimizer step after the other, without end: up to `accumulation` batches of rows each.

    Every epoch has an order of its own, drawn from the seed. All workers see the same batches.
    """
    for epoch in count():
        order = order_of(data, config, epoch)
        loader = iter(DataLoader(data, config.batch_size, sampler=order, collate_fn=list))
        while batches := list(islice(loader, config.accumulation)):
            yield batches


def order_of(data: EncodedSet, config: TrainConfig, epoch: int) -> Sampler[int]:
    """The order of the rows in an epoch."""
    if config.group_by_prompt:
        return ByPrompt([row.prompt_id for row in data.rows], config.seed, epoch)
    return RandomSampler(data, generator=torch.Generator().manual_seed(config.seed + epoch))


class ByPrompt(Sampler[int]):
    """Rows in random order, those of one prompt next to each other, so that a batch shares their prompts.

    `prompts` [n] says which prompt each row has. The order is the same for the same seed and epoch.
    """

    def __init__(self, prompts: Sequence[str], seed: int, epoch: int = 0) -> None:
        self._prompts, self._seed, self._epoch = prompts, seed, epoch

    def __len__(self) -> int:
        return len(self._prompts)

    @override
    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")
        order = rng.sample(range(len(self)), len(self))
        place = {prompt: rng.random() for prompt in sorted(set(self._prompts))}
        return iter(sorted(order, key=lambda i: place[self._prompts[i]]))


@dataclass(frozen=True)
class TermRows:
    """The rows of one term whose values a part computes: `where` [sides, n] they are in the part's output."""

    weight: float
    logged: bool  # whether it is the objective's first term
    rows: list[Any]
    where: Tensor


@dataclass(frozen=True)
class Part:
    """One forward pass of a batch. The losses of its parts add up to the batch's, so each has its own backward."""

    layout: Rows | Pack
    terms: list[TermRows]


def parts_of(engine: Engine, batch: Sequence[Any], objective: Objective) -> Iterator[Part]:
    """The forward passes of `batch`, each within the engine's budget of tokens.

    Every reading is computed once, however many terms and rows need it: all users share the generic user's readings.
    """
    terms = objective.terms(batch)
    wanted = [objective.sides(batch, term.user_indices) for term in terms]
    distinct = list(dict.fromkeys(reading for sides in wanted for side in sides for reading in side))
    for numbers, layout in engine.parts(distinct, engine.model.users.tokens):
        place = {distinct[number]: i for i, number in enumerate(numbers)}
        found = []
        for number, (term, sides) in enumerate(zip(terms, wanted, strict=True)):
            here = [i for i, reading in enumerate(sides[0]) if reading in place]  # its other side is in the same part
            if here:
                where = torch.tensor([[place[side[i]] for i in here] for side in sides])
                found.append(TermRows(term.weight, number == 0, [batch[i] for i in here], where))
        yield Part(layout, found)
