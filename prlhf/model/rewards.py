"""Rewards of comparisons, and accuracy and margins per user.

A reward model returns its rewards. A policy has an implicit reward of a response,
beta (log pi_P(y|x,u) - log pi_SFT(y|x)) (paper, Eq. 5 and section 4.4).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from prlhf.dataset import Comparison, Text
from prlhf.errors import NotFinite
from prlhf.model.checkpoint import Trained, kind_of, load_policy, load_reward_model, reference_model
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine, in_batches
from prlhf.model.personalized import Personalized, RewardModel
from prlhf.model.readings import readings_of
from prlhf.model.reference import Reference, open_cache
from prlhf.progress import SILENT, Progress


class Rewards(Protocol):
    """Where rewards come from: `scale` times the output of the model in `engine`, less the `offset`."""

    engine: Engine
    model: Personalized  # the one that scores
    scale: float

    def offset(self, batch: Sequence[Encoded]) -> Tensor:
        """What is the same for all users, [2B] for B comparisons: the chosen responses', then the rejected ones'."""

    def __call__(self, batch: Sequence[Encoded], user_indices: Sequence[int]) -> Tensor:
        """Rewards [2, B] of B comparisons, read as `user_indices`: the chosen responses', then the rejected ones'."""


class ImplicitRewards(Rewards):
    """Rewards of a policy: beta times the log-ratio to the reference."""

    def __init__(self, engine: Engine, reference: Reference, beta: float) -> None:
        self.model, self.engine, self.scale = engine.model, engine, beta
        self._reference = reference

    @override
    def offset(self, batch: Sequence[Encoded]) -> Tensor:
        return self.scale * self._reference.log_probs(batch)

    @override
    def __call__(self, batch: Sequence[Encoded], user_indices: Sequence[int]) -> Tensor:
        log_probs = self.engine.values(readings_of(batch, user_indices))
        return (self.scale * log_probs - self.offset(batch)).view(2, len(batch))


class ModelRewards(Rewards):
    """Rewards of a reward model."""

    def __init__(self, engine: Engine) -> None:
        self.model, self.engine, self.scale = engine.model, engine, 1.0

    @override
    def offset(self, batch: Sequence[Encoded]) -> Tensor:
        return torch.zeros(2 * len(batch))

    @override
    def __call__(self, batch: Sequence[Encoded], user_indices: Sequence[int]) -> Tensor:
        return self.engine.values(readings_of(batch, user_indices)).view(2, len(batch))


def load_rewards(
    run: Path,
    device: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
    users: Collection[str] | None = None,
    precision: str = "auto",
) -> tuple[Trained[Any], Rewards]:
    """Load a trained run of either kind, with all or with some of its `users`; returns it with its rewards."""
    load: Any = load_reward_model if kind_of(run) == "reward model" else load_policy
    trained = load(run, device, precision, base, trust_remote_code, users=users, progress=progress)
    return trained, rewards_of(trained, run, base, trust_remote_code)


def rewards_of(trained: Trained[Any], run: Path, base: str | None = None, trust_remote_code: bool = False) -> Rewards:
    """The rewards of what was loaded from `run`; a policy uses the reference cache if it was trained with it."""
    if isinstance(trained.model, RewardModel):
        return ModelRewards(engine_of(trained))
    engine = engine_of(trained)
    model = reference_model(trained, run, base, trust_remote_code)
    own = engine if model is trained.model else engine_of(replace(trained, model=model))
    cache = open_cache(model.lm) if trained.config.reference_cache else None
    return ImplicitRewards(engine, Reference(own, cache), trained.config.beta)


def engine_of(trained: Trained[Any], progress: Progress = SILENT) -> Engine:
    """An engine for `trained`, with its settings."""
    config = trained.config
    return Engine(trained.model, trained.tokenizer.pad_token_id, config.pack_tokens, config.prefix_tree, progress)


@dataclass(frozen=True)
class Scored:
    """Rewards of both responses of a comparison, read as one user."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        """The reward of the chosen response less that of the rejected one."""
        return self.chosen - self.rejected


def score(
    rewards: Rewards,
    data: Sequence[Encoded],
    user_indices: Sequence[int],
    batch_size: int,
    progress: Progress = SILENT,
) -> list[Scored]:
    """Score `data` as `user_indices` (one per comparison), in the order given."""

    def read(chunk: list[int]) -> list[Scored]:
        found = rewards([data[i] for i in chunk], [user_indices[i] for i in chunk]).tolist()
        return [Scored(chosen, rejected) for chosen, rejected in zip(*found, strict=True)]

    lengths = [len(row.prompt) + len(row.chosen) for row in data]
    return in_batches(rewards.model, lengths, batch_size, read, progress)


class ResponseReader:
    """Encodes responses as a user of a trained run reads them; unknown ids are the generic user, without text."""

    def __init__(self, trained: Trained[Any]) -> None:
        self._encoder, self._index, self._texts = trained.encoder(), trained.index_of(), trained.user_texts

    def encode(self, prompt: Text, user_id: str, a: str, b: str, name: str) -> Encoded:
        """Encode responses `a` and `b` as chosen and rejected, in the format of the prompt; errors call them `name`."""
        chosen, rejected = (r if isinstance(prompt, str) else [{"role": "assistant", "content": r}] for r in (a, b))
        user_index, text = self._index.get(user_id, 0), self._texts.get(user_id, "")
        return self._encoder.pair(
            Comparison(name, prompt, chosen, rejected, user_id, user_index, text, name, seen=user_index > 0)
        )


def check_finite(groups: Sequence[str], scored: Sequence[Scored]) -> None:
    """Raise NotFinite if a margin is nan or infinite: it is neither won nor lost."""
    lost = [group for group, s in zip(groups, scored, strict=True) if not math.isfinite(s.margin)]
    if lost:
        raise NotFinite(
            f"the rewards of {len(lost)} of {len(scored)} held-out comparisons are not finite, such as of '{lost[0]}'",
            "check the rows, or train with a lower lr or user_lr, or with precision = fp32, into a new run folder",
        )


def accuracy_by(groups: Sequence[str], scored: Sequence[Scored]) -> dict[str, float]:
    """Share of comparisons with a positive margin, per group; a margin of exactly 0 counts half."""
    check_finite(groups, scored)
    hits: defaultdict[str, list[float]] = defaultdict(list)
    for group, item in zip(groups, scored, strict=True):
        hits[group].append(0.5 if item.margin == 0 else float(item.margin > 0))
    return {group: sum(values) / len(values) for group, values in hits.items()}


def margins_by(groups: Sequence[str], scored: Sequence[Scored]) -> dict[str, float]:
    """Mean margin per group, in units of reward."""
    margins: defaultdict[str, list[float]] = defaultdict(list)
    for group, item in zip(groups, scored, strict=True):
        margins[group].append(item.margin)
    return {group: sum(values) / len(values) for group, values in margins.items()}


def accuracy_summary(
    user_ids: Sequence[str], user_indices: Sequence[int], as_user: Sequence[Scored], as_generic: Sequence[Scored]
) -> dict[str, Any]:
    """Accuracy and margin per user, their macro average, that of the worst tenth of users, and the generic user's.

    `user_ids` and `user_indices` (0: unseen in training) are the user of each comparison. `accuracy_seen` and
    `accuracy_unseen` are macro averages over the seen and the unseen users, None where there are none.
    `generic`: the same comparisons scored as user 0, micro-averaged; `generic_by_user` the same per user.
    """
    accuracy = accuracy_by(user_ids, as_user)
    ranked = sorted(accuracy.values())
    seen = {user for user, user_index in zip(user_ids, user_indices, strict=True) if user_index > 0}
    generic = accuracy_by(["all"] * len(as_generic), as_generic)
    return {
        "accuracy_macro": mean(ranked),
        "accuracy_seen": mean([value for user, value in accuracy.items() if user in seen]),
        "accuracy_unseen": mean([value for user, value in accuracy.items() if user not in seen]),
        "accuracy_worst_tenth": mean(ranked[: max(1, len(ranked) // 10)]),
        "accuracy_generic": generic["all"],
        "margin_mean": mean([s.margin for s in as_user]),
        "accuracy_by_user": accuracy,
        "margin_by_user": margins_by(user_ids, as_user),
        "generic_by_user": accuracy_by(user_ids, as_generic),
    }


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None for no values."""
    return sum(values) / len(values) if values else None
