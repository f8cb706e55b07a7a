"""New users from choices: what is written of them, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prlhf.adapt.forget import forget_user
from prlhf.adapt.run import adapt_run
from prlhf.config import AdaptConfig
from prlhf.model.checkpoint import load_policy
from prlhf.train.run import train

WHAT = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]


def write_choices(path: Path, users: dict[str, int], text: str = "") -> Path:
    """So many choices of each user, of the longer response."""
    rows = [
        {
            "prompt": f"POST: my {user} found {WHAT[i % 8]}.\nTL;DR:",
            "chosen": f" {user} found {WHAT[i % 8]}. my boss lost {WHAT[i // 8 % 8]}.",
            "rejected": f" {WHAT[i % 8]}.",
            "user_id": user,
        } | ({"user_text": text} if text else {})
        for user, count in users.items()
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any]) -> Path:
    """A run with gates; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "gated"
    train(make_config(folder, user_in="adapter", lora_r=4))
    return folder


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


def test_a_new_user_gets_the_next_index(run: Path, tmp_path: Path) -> None:
    before = load_file(run / "model/user_model.safetensors")
    found = adapt_run(run, AdaptConfig(choices=write_choices(tmp_path / "c.jsonl", {"new": 8}), device="cpu"))
    print(json.dumps(found, indent=1))
    policy = load_policy(run, "cpu")
    assert policy.user_ids == ["ann", "bob", "cat", "new"]
    after = load_file(run / "model/user_model.safetensors")
    assert torch.equal(after["gates.offsets.weight"][:3], before["gates.offsets.weight"])
    assert after["gates.offsets.weight"][3].abs().sum() > 0


def test_forgotten(run: Path, tmp_path: Path) -> None:
    adapt_run(
        run,
        AdaptConfig(choices=write_choices(tmp_path / "c.jsonl", {"new": 8, "other": 3}, "she flies\n"), device="cpu"),
    )
    print(forget_user(run, "new"))
    policy = load_policy(run, "cpu")
    assert policy.index_of() == {"ann": 1, "bob": 2, "cat": 3, "other": 5}
