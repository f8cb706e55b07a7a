"""The training loss of a few comparisons, without a training run around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.dataset import Comparison, read_prepared
from prlhf.model.checkpoint import Trained, build_policy, build_reward_model
from prlhf.model.scoring import engine_of
from prlhf.progress import SILENT
from prlhf.train.run import reference_of
from prlhf.train.trainer import EncodedSet, PersonalizedTrainer


def moved_policy(config: TrainConfig) -> Trained[Any]:
    """A fresh policy, or reward model, whose adapter and users have left their start, the same for the same config."""
    data = read_prepared(Path(config.dataset))
    build = build_reward_model if config.objective == "rm" else build_policy
    policy: Trained[Any] = build(config, data.user_ids, {})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def trainer_of(policy: Trained[Any], rows: Sequence[Comparison]) -> PersonalizedTrainer:
    encoder = policy.encoder()
    data = EncodedSet([encoder.comparison(row) for row in rows], rows)
    engine = engine_of(policy)
    # with the cache that runs have: what it holds was rounded once, in whatever batch
    reference = None if policy.config.objective == "rm" else reference_of(engine, policy.config, SILENT)
    return PersonalizedTrainer(policy, engine, reference, data, data, policy.config.folder, [])


def loss_of(policy: Trained[Any], rows: Sequence[Comparison]) -> Tensor:
    trainer = trainer_of(policy, rows)
    loss: Tensor = trainer.compute_loss(trainer.model, {"comparisons": trainer.train_dataset.encoded})
    return loss


def as_users(rows: Sequence[Comparison], indices: Sequence[int]) -> list[Comparison]:
    return [replace(row, user_index=index) for row, index in zip(rows, indices, strict=True)]


def numbers(value: Any) -> Any:
    """A metrics row without wall-clock times."""
    return {k: numbers(v) for k, v in value.items() if "second" not in k} if isinstance(value, dict) else value
