"""Workers together find the same start of users as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from material import write_crowd
from test_workers import run_workers
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.model.checkpoint import build_policy
from prlhf.model.rewards import engine_of
from prlhf.train.encode import encode
from prlhf.train.user_start import start_users

USERS = 12


def started(config: TrainConfig, sharded: bool = False) -> list[Tensor]:
    """The vectors of all users in front of the prompt, and their gates."""
    data = read_prepared(Path(config.dataset))
    policy = build_policy(config, data.user_ids, {}, sharded)
    train_set, _, _ = encode(policy, data)
    start_users(engine_of(policy), config, train_set, USERS)
    users = policy.model.users
    assert users.gates
    return [place(torch.arange(USERS + 1)).detach() for place in (users, users.gates)]


def on_two(rank: int, config: TrainConfig, place: Path) -> None:
    torch.save([started(config), started(config, sharded=True)], place / f"{rank}.pt")


def test_two_workers_start_as_one(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """Up to rounding, whole or in shards; among themselves to the last bit."""
    data = write_crowd(tmp_path / "data", USERS, 12)
    config = make_config(
        tmp_path / "run", dataset=str(data), user_in="both", user_init="choices", reference_cache=False
    )
    run_workers(2, on_two, config, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = started(config)
    assert alone[1].any()
    for there, too in zip(first, second, strict=True):
        for mine, others, expected in zip(there, too, alone, strict=True):
            assert torch.equal(mine, others)
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
