"""A run with users in the adapter, from training to judging, by its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prlhf.config import GenerateConfig
from prlhf.generate.run import generate
from prlhf.loaded import Loaded
from prlhf.model.checkpoint import load_policy, load_reward_model
from prlhf.responses import read_responses
from prlhf.train.dry_run import plan
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("gated") / "run"
    train(make_config(folder, user_in="adapter", gates="block", max_steps=20))
    return folder


def test_its_files_and_its_card(gated: Path) -> None:
    tables = load_file(gated / "model/user_model.safetensors")
    assert {name: tuple(value.shape) for name, value in tables.items()} == {
        "shared": (0, 32),
        "gates.offsets.weight": (3, 2 * 2),
    }
    card = (gated / "model/README.md").read_text()
    assert "an individual user model of gates on the adapter's rank of 2 in each decoder layer for 3 users" in card
    assert "(gates 0.03)" in card


def test_a_plan_counts_its_gates(make_config: MakeConfig, tmp_path: Path) -> None:
    found = [
        plan(make_config(tmp_path / "run", **changes))["parameters"]["user_model"]
        for changes in ({}, {"user_in": "adapter"}, {"user_in": "both", "gates": "block"})
    ]
    assert found == [4 * 2 * 32, 3 * 2, 4 * 2 * 32 + 3 * 2 * 2]


def test_it_writes_and_scores_for_each_user(gated: Path, tmp_path: Path) -> None:
    config = GenerateConfig(
        prompts="eval", users="seen,generic", temperature=0, max_new_tokens=8, out=tmp_path / "o.jsonl"
    )
    generate(gated, config)
    texts: dict[str, dict[str, str]] = {}
    for row in read_responses(tmp_path / "o.jsonl"):
        texts.setdefault(row.prompt_id, {})[row.user_id] = row.response
    assert any(len(set(by_user.values())) > 1 for by_user in texts.values())
    loaded = Loaded(gated, "policy", load_policy(gated, "cpu"))
    prompt = next(iter(read_responses(tmp_path / "o.jsonl"))).prompt
    rewards = {user: loaded.reward(prompt, ["a b", "c d e f"], user) for user in ("ann", "bob", "generic")}
    assert len({tuple(found) for found in rewards.values()}) == 3
    assert loaded.generate(prompt, "bob", temperature=0, max_new_tokens=8) in {by["bob"] for by in texts.values()}


def test_a_reward_model_with_gates(make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(tmp_path / "rm", objective="rm", user_in="adapter", user_model="cluster"))
    loaded = Loaded(tmp_path / "rm", "reward model", load_reward_model(tmp_path / "rm", "cpu"))
    found = {user: loaded.reward("a", ["b", "c d"], user) for user in ("ann", "bob", "generic")}
    assert len({tuple(values) for values in found.values()}) == 3
    assert "gates 0.03" in (tmp_path / "rm/model/README.md").read_text()
