"""Supervised fine-tuning on real worker processes: they leave the base that one process leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_workers import run_workers

from prlhf.dataset import read_prepared
from prlhf.train import metrics
from prlhf.train.run import learn, train, without_users


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics.read(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("full", [False, True])
def test_two_workers_follow_one(tmp_path: Path, make_config: Any, full: bool) -> None:
    """Two workers, with the whole model or shards of it, leave the base that one process leaves."""
    config = make_config(tmp_path / "one", objective="sft", batch_size=3, lr=1e-3, eval_every=3, full_finetune=full)
    train(config)
    run_workers(2, both_ways, without_users(config), tmp_path)
    one = load_file(tmp_path / "one/model/model.safetensors")
    scores = json.loads((tmp_path / "one/results.json").read_text())["eval"]
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name / "0") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
        found = json.loads((tmp_path / name / "0/results.json").read_text())["eval"]
        assert found == pytest.approx(scores, abs=1e-3)
        two = load_file(tmp_path / name / "0/model/model.safetensors")
        assert one.keys() == two.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=1e-4)


def both_ways(rank: int, config: Any, folder: Path) -> None:
    for name, sharded in (("ddp", False), ("fsdp", True)):
        own = config.model_copy(update={"out": folder / name / str(rank)})
        learn(own, read_prepared(Path(config.dataset)), False, sharded=sharded)
