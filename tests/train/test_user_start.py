"""`user_init: choices` in whole runs: one pass before the first step, and checkpoints with all rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from material import write_crowd
from safetensors.torch import load_file
from test_reference_runs import Heard
from test_resume import Killed, StopAt, assert_same_run
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import build_policy, build_reward_model
from prlhf.model.rewards import engine_of
from prlhf.sweep.trial import fill_states
from prlhf.train import run
from prlhf.train.dry_run import plan
from prlhf.train.encode import encode
from prlhf.train.per_user import train_per_user
from prlhf.train.run import train
from prlhf.train.user_start import start_users

MakeConfig = Callable[..., Any]
USERS, EACH = 16, 12
OPTIONS: dict[str, Any] = {"user_init": "choices", "user_in": "adapter", "lora_dropout": 0.2}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_crowd(tmp_path_factory.mktemp("data") / "crowd", USERS, EACH)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one for each test."""
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/states"


def started(config: TrainConfig, progress: Any = None) -> Any:
    """The untrained model of `config` after its start."""
    data = read_prepared(Path(config.dataset))
    policy = (build_reward_model if config.objective == "rm" else build_policy)(config, data.user_ids, {})
    train_set, _, _ = encode(policy, data)
    start_users(engine_of(policy), config, train_set, len(data.user_ids), progress or Heard())
    return policy.model


def vectors(model: Any) -> list[Tensor]:
    """[17, numbers] of the generic user and the others, for each place where they act."""
    places = [place for place in (model.users, model.users.gates) if place is not None and place.vectors]
    return [place(torch.arange(USERS + 1)).detach().flatten(1) for place in places]


@pytest.mark.parametrize("changes", [{}, {"objective": "rm"}, {"user_in": "both"}, {"user_in": "prompt"}])
@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_users_start_beside_those_who_choose_as_they_do(
    tmp_path: Path, make_config: MakeConfig, crowd: Path, kind: str, changes: dict[str, Any]
) -> None:
    config = make_config(tmp_path / "run", dataset=str(crowd), **{"user_model": kind} | OPTIONS | changes)
    found = vectors(started(config))
    assert len(found) == (2 if config.user_in == "both" else 1)
    for rows in found:
        generic, own, nobody = rows.split([1, USERS - 1, 1])
        torch.testing.assert_close(nobody, generic, atol=1e-5, rtol=0)
        distances = torch.cdist(own, own)
        assert distances[::2, ::2].mean() < 0.5 * distances[::2, 1::2].mean()


def test_one_pass_with_a_bar_that_a_second_run_does_not_need(
    tmp_path: Path, make_config: MakeConfig, crowd: Path, cache: Path
) -> None:
    config = make_config(tmp_path / "run", dataset=str(crowd), **OPTIONS)
    first, second = Heard(), Heard()
    once, again = (vectors(started(config, progress)) for progress in (first, second))
    assert [label for label, _ in first.bars] == ["hidden states"]
    assert second.bars == []
    assert first.lines == second.lines
    assert first.lines[-1] == "users' choices differ in 1 direction of taste"
    assert torch.equal(once[0], again[0])
    assert list(cache.glob("*/*.npy"))
    private = config.model_copy(update={"reference_cache": False})
    third = Heard()
    started(private, third)
    assert third.bars == first.bars


def test_choices_that_say_nothing_start_everyone_alike(tmp_path: Path, make_config: MakeConfig, crowd: Path) -> None:
    data = read_prepared(crowd)
    flip = torch.rand(len(data.train), generator=torch.Generator().manual_seed(0)) < 0.5
    rows = [
        replace(row, chosen=row.rejected, rejected=row.chosen) if flipped else row
        for row, flipped in zip(data.train, flip.tolist(), strict=True)
    ]
    write_prepared(tmp_path / "coins", replace(data, train=rows))
    config = make_config(tmp_path / "run", dataset=str(tmp_path / "coins"), **OPTIONS | {"user_model": "cluster"})
    progress = Heard()
    (found,) = vectors(started(config, progress))
    assert progress.lines[-1] == "users' choices show nothing in which they differ: all start as the generic user"
    torch.testing.assert_close(found, found[:1].expand_as(found))


# ---- whole runs ----


def config_of(folder: Path, make_config: MakeConfig, crowd: Path, **changes: Any) -> TrainConfig:
    found: TrainConfig = make_config(folder, dataset=str(crowd), **OPTIONS | changes)
    return found


@pytest.mark.parametrize("changes", [{}, {"user_in": "both", "user_model": "cluster"}])
@pytest.mark.parametrize("at", [1, 4])
def test_resumed_is_uninterrupted(
    tmp_path: Path, make_config: MakeConfig, crowd: Path, monkeypatch: pytest.MonkeyPatch, at: int, changes: Any
) -> None:
    """Killed before the first checkpoint, and after one: that has the rows of users who were not met yet."""
    train(config_of(tmp_path / "whole", make_config, crowd, **changes))
    config = config_of(tmp_path / "run", make_config, crowd, **changes)
    with pytest.raises(Killed):
        train(config, progress=StopAt(at))
    if at > 1:
        monkeypatch.setattr(run, "start_users", lambda *args: 1 // 0)
    train(config, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_begins_at_the_start(tmp_path: Path, make_config: MakeConfig, crowd: Path) -> None:
    config = config_of(tmp_path / "run", make_config, crowd, max_steps=1)
    train(config)
    saved = load_file(tmp_path / "run/model/user_model.safetensors")["gates.offsets.weight"]
    (start,) = vectors(started(config))
    assert start.abs().max() > 1
    torch.testing.assert_close(saved, start[1:], atol=0.05, rtol=0)  # a step of 0.03


# ---- what else knows of it ----


def test_a_dry_run_says_it(tmp_path: Path, make_config: MakeConfig, crowd: Path) -> None:
    config = config_of(tmp_path / "run", make_config, crowd)
    assert plan(config)["read_before"] == 2 * (USERS - 1) * EACH
    assert plan(make_config(tmp_path / "run", dataset=str(crowd)))["read_before"] == 0


def test_one_adapter_per_user_has_nobody_to_start(tmp_path: Path, make_config: MakeConfig, crowd: Path) -> None:
    with pytest.raises(PrlhfError, match="--per-user has no user model that user_init = choices could start"):
        train_per_user(config_of(tmp_path / "run", make_config, crowd))
    assert not (tmp_path / "run").exists()


def test_gates_of_no_spread_are_refused() -> None:
    with pytest.raises(PrlhfError, match="gate_scale = 0 starts everyone as the generic user"):
        TrainConfig(user_in="adapter", user_init="choices", gate_scale=0)
    assert TrainConfig(user_in="both", user_init="choices", gate_scale=0).gate_scale == 0


def test_trials_of_a_sweep_share_the_pass(tmp_path: Path, make_config: MakeConfig, crowd: Path) -> None:
    trials = [config_of(tmp_path / str(scale), make_config, crowd, gate_scale=scale) for scale in (1.0, 2.0)]
    distinct = {(row.prompt, text) for row in read_prepared(crowd).train for text in (row.chosen, row.rejected)}
    assert fill_states([*trials, make_config(tmp_path / "other", dataset=str(crowd))]) == len(distinct)
    assert fill_states(trials) == 0
    progress = Heard()
    started(trials[0], progress)
    assert progress.bars == []
