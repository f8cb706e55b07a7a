"""The objectives' terms: from what the model says of both responses, read as one user, to losses and margins.

A term is computed once per reading: as the comparison's user, and as the generic one. The weights alpha and 1 - alpha
are the trainer's business, and the same for all objectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.reference import Reference
from prlhf.model.scoring import ImplicitRewards, ModelRewards, Rewards
from prlhf.train import objectives
from prlhf.train.losses import preference_loss


@dataclass(frozen=True)
class Term:
    """`losses` [B] carry gradients; `margins` [B], the chosen's reward less the rejected one's, do not."""

    losses: Tensor
    margins: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)  # [B] each


class Objective(Protocol):
    """What a model is trained by: the loss of comparisons, and the rewards it is evaluated with."""

    rewards: Rewards  # what evaluations score with

    def term(self, values: Tensor, batch: Sequence[Encoded]) -> Term:
        """`values` [2, B]: the model's output for the chosen responses, then for the rejected ones."""


class DPO(Objective):
    """The DPO family with an NLL term on the chosen response; the model's output is log-probs in nats."""

    def __init__(self, engine: Engine, reference: Reference, config: TrainConfig) -> None:
        self.config, self.reference = config, reference
        self.rewards = ImplicitRewards(engine, reference, self.config.beta)

    @override
    def term(self, values: Tensor, batch: Sequence[Encoded]) -> Term:
        config = self.config
        reference = self.reference.log_probs(batch).to(values.device).view(2, len(batch))
        lengths = torch.tensor([[len(e.chosen) for e in batch], [len(e.rejected) for e in batch]]).to(values.device)
        losses = preference_loss(config.loss, values - reference, lengths, config.beta, config.label_smoothing)
        nll = objectives.nll_per_token(values[0], lengths[0])
        if config.nll:
            losses = losses + config.nll * nll
        margins = config.beta * objectives.implicit_margin(*values, *reference)
        return Term(losses, margins.detach(), {"nll_chosen": nll.detach()})


class BradleyTerry(Objective):
    """P-RM (version 1 of the paper); the model's output is rewards. There is no reference, so no beta and no NLL."""

    def __init__(self, engine: Engine) -> None:
        self.rewards = ModelRewards(engine)

    @override
    def term(self, values: Tensor, batch: Sequence[Encoded]) -> Term:
        margins = values[0] - values[1]
        return Term(objectives.bradley_terry(margins), margins.detach())


def objective_of(engine: Engine, reference: Reference | None, config: TrainConfig) -> Objective:
    """What the engine's model is trained by: with a reference as a policy, without one as a reward model."""
    return BradleyTerry(engine) if reference is None else DPO(engine, reference, config)
