"""What a model is trained by: DPO, Bradley-Terry, imitation of the chosen responses, or policy optimization.

An objective is a weighted sum of terms (section 4.4): alpha times the loss of the rows read as their users, plus
1 - alpha times the loss of the same rows read as the generic user. A term's losses are computed from what the model
says of one response or two ("sides") per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.config.train import ONLINE, POLICY_GRADIENT
from prlhf.model import workers
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine, in_batches
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.prefix_tree import Pack
from prlhf.model.readings import Reading, Rows, readings_of
from prlhf.model.reference import Reference
from prlhf.model.rewards import ImplicitRewards, ModelRewards, Rewards, Scored, accuracy_summary, score
from prlhf.model.user_models import user_model_of
from prlhf.progress import Progress
from prlhf.train import policy_losses
from prlhf.train.encode import Demonstration, EncodedSet
from prlhf.train.losses import bradley_terry, implicit_margin, nll_per_token, preference_loss


class Term(NamedTuple):
    """One weighted term of an objective, for a batch of rows."""

    weight: float
    user_indices: list[int]  # the user that reads each row; 0 is the generic one


@dataclass(frozen=True)
class RowLosses:
    """A term's `losses` [B] of B rows, with gradients, and what is logged of each row, `logs` [B], without."""

    losses: Tensor
    logs: dict[str, Tensor]


class Objective(Protocol):
    """What a model is trained by."""

    unit: str  # what a row is called in summaries
    reference: Reference | None  # log-probs of the base, if the losses need them

    def terms(self, rows: Sequence[Any]) -> list[Term]:
        """The terms for `rows`, with weights above 0; the first one is logged."""

    def sides(self, rows: Sequence[Any], user_indices: Sequence[int]) -> list[list[Reading]]:
        """What the model reads for B rows as `user_indices`: a list of B readings for each side."""

    def read(self, model: nn.Module, layout: Rows | Pack) -> Tensor:
        """What `model` says of the N readings of a forward pass, [N]."""
        return model(layout)  # type: ignore[no-any-return]

    def losses(self, values: Tensor, rows: Sequence[Any]) -> RowLosses:
        """The losses of B rows, from what `read` returned for them, `values` [sides, B]."""

    def size(self, rows: Sequence[Any]) -> int:
        """What the summed losses of an optimizer step's `rows` are divided by: their number, or that of tokens."""

    def evaluate(self, held_out: EncodedSet, batch_size: int, progress: Progress) -> dict[str, Any]:
        """Numbers about held-out rows, `batch_size` rows at a time; the same on every worker."""


def weighted_terms(config: TrainConfig, rows: Sequence[Any]) -> list[Term]:
    """The terms of the objective that `config` asks for; a term of weight 0 is left out.

    With a uniform user model both terms would be the same, so there is one of weight 1. In rounds (rounds.py) a row is
    read as whom it was drawn for, a user or the generic one in the proportion of alpha: one term again.
    """
    users, generic = [row.user_index for row in rows], [0] * len(rows)
    if ONLINE.holds(config) or not user_model_of(config).personal:
        return [Term(1.0, users)]
    terms = [Term(config.alpha, users), Term(1.0 - config.alpha, generic)]
    return [term for term in terms if term.weight > 0]


class Preferences(Objective):
    """What DPO and Bradley-Terry share: rows are comparisons, evaluated by the rewards of both responses."""

    unit = "comparisons"
    rewards: Rewards

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    @override
    def terms(self, rows: Sequence[Encoded]) -> list[Term]:
        return weighted_terms(self.config, rows)

    @override
    def sides(self, rows: Sequence[Encoded], user_indices: Sequence[int]) -> list[list[Reading]]:
        """The chosen responses, then the rejected ones."""
        readings = readings_of(rows, user_indices)
        return [readings[: len(rows)], readings[len(rows) :]]

    @override
    def size(self, rows: Sequence[Encoded]) -> int:
        """The number of comparisons."""
        return len(rows)

    @override
    def evaluate(self, held_out: EncodedSet, batch_size: int, progress: Progress) -> dict[str, Any]:
        """Accuracy and margin of the (implicit) reward, per user and as the generic user."""
        data, own = held_out.encoded, [row.user_index for row in held_out.encoded]
        personal = user_model_of(self.config).personal
        progress.start("evaluating", len(workers.spread(data)) * (2 if personal else 1))

        def scored_as(users: list[int]) -> list[Scored]:
            found = score(self.rewards, workers.spread(data), workers.spread(users), batch_size, progress)
            return workers.collect(found, len(data))

        as_user = scored_as(own)
        as_generic = scored_as([0] * len(data)) if personal else as_user
        progress.finish()
        return accuracy_summary([row.user_id for row in held_out.rows], own, as_user, as_generic)


class DPO(Preferences):
    """The DPO family with an NLL term on the chosen response; the model's output is log-probs in nats."""

    reference: Reference

    def __init__(self, engine: Engine, reference: Reference, config: TrainConfig) -> None:
        super().__init__(config)
        self.reference = reference
        self.rewards = ImplicitRewards(engine, reference, config.beta)

    @override
    def losses(self, values: Tensor, rows: Sequence[Encoded]) -> RowLosses:
        """See Objective; `values` are log-probs, chosen first."""
        config = self.config
        reference = self.reference.log_probs(rows).to(values.device).view(2, len(rows))
        lengths = torch.tensor([[len(e.chosen) for e in rows], [len(e.rejected) for e in rows]]).to(values.device)
        ratios = values - reference
        losses = preference_loss(config.loss, ratios, lengths, config.beta, config.label_smoothing)
        nll = nll_per_token(values[0], lengths[0])
        if config.nll:
            losses = losses + config.nll * nll
        margins = config.beta * implicit_margin(*values, *reference)
        logs = {"nll_chosen": nll, "log_ratio_chosen": ratios[0], "log_ratio_rejected": ratios[1]}
        return RowLosses(losses, _preference_logs(margins) | {key: value.detach() for key, value in logs.items()})


class BradleyTerry(Preferences):
    """P-RM (version 1 of the paper); the model's output is rewards. There is no reference, so no beta and no NLL."""

    reference = None

    def __init__(self, engine: Engine, config: TrainConfig) -> None:
        super().__init__(config)
        self.rewards = ModelRewards(engine)

    @override
    def losses(self, values: Tensor, rows: Sequence[Encoded]) -> RowLosses:
        """See Objective; `values` are rewards, chosen first."""
        margins = values[0] - values[1]
        return RowLosses(bradley_terry(margins), _preference_logs(margins))


def _preference_logs(margins: Tensor) -> dict[str, Tensor]:
    """Whether the chosen response has the higher reward, and by how much."""
    return {"accuracy": (margins > 0).float(), "margin": margins.detach()}


class Imitation(Objective):
    """Supervised fine-tuning: the NLL of the chosen responses, a mean over tokens, the same for all users."""

    unit, reference = "demonstrations", None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @override
    def terms(self, rows: Sequence[Demonstration]) -> list[Term]:
        """One term, read as the generic user."""
        return [Term(1.0, [0] * len(rows))]

    @override
    def sides(self, rows: Sequence[Demonstration], user_indices: Sequence[int]) -> list[list[Reading]]:
        """The responses."""
        readers = zip(rows, user_indices, strict=True)
        return [[Reading(user, tuple(row.prompt), tuple(row.response)) for row, user in readers]]

    @override
    def losses(self, values: Tensor, rows: Sequence[Demonstration]) -> RowLosses:
        """See Objective; `values` are log-probs in nats."""
        return RowLosses(-values[0], {})

    @override
    def size(self, rows: Sequence[Demonstration]) -> int:
        """The number of response tokens."""
        return sum(len(row.response) for row in rows)

    @override
    def evaluate(self, held_out: EncodedSet, batch_size: int, progress: Progress) -> dict[str, Any]:
        """Negative log-likelihood of the responses in nats: the mean over their tokens, and over them."""
        data = held_out.encoded
        mine = workers.spread(data)

        def read(chunk: list[int]) -> list[float]:
            (readings,) = self.sides([mine[i] for i in chunk], [0] * len(chunk))
            return self.engine.values(readings).tolist()

        progress.start("evaluating", len(mine))
        lengths = [len(row.prompt) + len(row.response) for row in mine]
        found = in_batches(self.engine.model, lengths, batch_size, read, progress)
        progress.finish()
        total = -sum(workers.collect(found, len(data)))
        return {"nats_per_token": total / self.size(data), "nats_per_response": total / len(data)}


# ---- policy optimization ----


@dataclass(frozen=True, eq=False)
class Group:
    """The candidates to one prompt for one user: `readings` [G], `advantages` [G], `old`, `reference`, `mask` [G, W].

    `old` and `reference` are the log-probs of tokens, in nats, of the policy that wrote them and of the base.
    """

    readings: list[Reading]
    advantages: Tensor
    old: Tensor
    reference: Tensor
    mask: Tensor

    @property
    def user_index(self) -> int:
        """Whom the candidates were written for."""
        return self.readings[0].user_index


class PolicyGradient(Preferences):
    """GRPO or RLOO; the model's output is log-probs of tokens. Held-out comparisons are evaluated as those of DPO."""

    unit = "prompts"
    reference: Reference

    def __init__(self, engine: Engine, reference: Reference, config: TrainConfig) -> None:
        super().__init__(config)
        self.reference, self.rewards = reference, ImplicitRewards(engine, reference, beta=config.beta)

    @override
    def read(self, model: nn.Module, layout: Rows | Pack) -> Tensor:
        """Log-probs of tokens, [N, W]."""
        assert isinstance(model, PersonalizedLM)
        return model.by_token(layout)

    @override
    def terms(self, rows: Sequence[Any]) -> list[Term]:
        """One term: a group is read as whom it was written for, a user or the generic one in the ratio of alpha."""
        return [Term(1.0, [row.user_index for row in rows])]

    @override
    def sides(self, rows: Sequence[Any], user_indices: Sequence[int]) -> list[list[Reading]]:
        """The first candidate of each group, then the second of each, and so on."""
        return [list(side) for side in zip(*(row.readings for row in rows), strict=True)]

    @override
    def losses(self, values: Tensor, rows: Sequence[Any]) -> RowLosses:
        """The mean loss of each group's candidates, [B]; `values` [G, B, W] are log-probs of tokens."""
        config, new = self.config, values.transpose(0, 1)
        old, reference, mask = (_as_wide(new, [getattr(row, name) for row in rows]) for name in FIELDS)
        advantages = torch.stack([row.advantages for row in rows]).to(new.device)
        if config.objective == "rloo":
            ratio = ((new - old) * mask).sum(-1).exp()
            outside = policy_losses.outside(ratio, advantages, config.clip)
            found = policy_losses.rloo(new, old, mask, advantages, config.clip)
        else:
            per_token = policy_losses.outside((new - old).exp(), advantages.unsqueeze(-1), config.clip)
            outside = policy_losses.over_tokens(per_token, mask)
            found = policy_losses.grpo(new, old, reference, mask, advantages, config.clip, config.beta)
        kl = policy_losses.over_tokens(policy_losses.k3(new.detach(), reference), mask)
        return RowLosses(found.mean(1), {"kl_per_token": kl.mean(1), "clipped": outside.detach().mean(1)})


FIELDS = ("old", "reference", "mask")


def _as_wide(values: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """`parts`, each [G, w], as one tensor like `values` [B, G, W], 0 where a part has nothing."""
    return torch.stack([F.pad(part, (0, values.shape[-1] - part.shape[-1])) for part in parts]).to(values)


def objective_of(engine: Engine, reference: Reference | None, config: TrainConfig) -> Objective:
    """The objective that `config` names; DPO needs the `reference`."""
    if config.objective == "sft":
        return Imitation(engine)
    if config.objective == "rm":
        return BradleyTerry(engine, config)
    if reference is None:
        raise ValueError(f"{config.objective} needs the log-probs of the base")
    return (PolicyGradient if POLICY_GRADIENT.holds(config) else DPO)(engine, reference, config)
