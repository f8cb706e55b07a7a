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
from prlhf.model.rewards import engine_of
from prlhf.progress import SILENT
from prlhf.train.batches import parts_of
from prlhf.train.encode import EncodedSet
from prlhf.train.loop import Loop
from prlhf.train.objectives import objective_of
from prlhf.train.run import reference_of


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


def loop_of(policy: Trained[Any], rows: Sequence[Comparison]) -> Loop:
    """A loop over `rows`, which are its held-out rows too."""
    policy.config.folder.mkdir(parents=True, exist_ok=True)
    encoder = policy.encoder()
    data = EncodedSet([encoder.comparison(row) for row in rows], rows)
    engine = engine_of(policy)
    # with the cache that runs have: what it holds was rounded once, in whatever batch
    reference = None if policy.config.objective == "rm" else reference_of(engine, policy.config, SILENT)
    return Loop(policy, engine, objective_of(engine, reference, policy.config), data, data)


def whole_loss(loop: Loop, batch: Sequence[Any]) -> Tensor:
    """The loss of a step of one batch, with its gradient: all parts at once."""
    parts = parts_of(loop.engine, batch, loop.objective)
    return torch.stack([loop.loss_of(part, loop.objective.size(batch)) for part in parts]).sum()


def loss_of(policy: Trained[Any], rows: Sequence[Comparison]) -> Tensor:
    """The loss of a step on `rows`."""
    loop = loop_of(policy, rows)
    return whole_loss(loop, loop.train_set.encoded)


def as_users(rows: Sequence[Comparison], indices: Sequence[int]) -> list[Comparison]:
    return [replace(row, user_index=index) for row, index in zip(rows, indices, strict=True)]


def numbers(value: Any) -> Any:
    """A metrics row without wall-clock times."""
    return {k: numbers(v) for k, v in value.items() if "second" not in k} if isinstance(value, dict) else value
