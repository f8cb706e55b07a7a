"""`precision` is the number format in which a run is read, whatever is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prlhf.adapt.few_shot import judge_few_shot
from prlhf.config import JudgeConfig, TrainConfig
from prlhf.dataset import Comparison, Prepared, prompt_id, read_prepared, write_prepared
from prlhf.generate.best_of import load_best_of
from prlhf.judge.accuracy import judge_checkpoint
from prlhf.judge.general.run import judge_general
from prlhf.judge.reward import RewardJudge
from prlhf.model import checkpoint
from prlhf.online.plan import round_settings


@pytest.fixture
def people(prepared: Path, tmp_path: Path) -> Path:
    data = read_prepared(prepared)
    rows = [
        Comparison(f"{user}-{i}", f"{user} {i}", " lamps", " cars", user, 0, "", prompt_id(f"{user} {i}"), seen=False)
        for user in ("yan", "zed")
        for i in range(3)
    ]
    write_prepared(tmp_path / "people", Prepared(data.train, rows, data.users, {"dataset": "people"}))
    return tmp_path / "people"


@pytest.fixture
def general(tmp_path: Path) -> Path:
    path = tmp_path / "general.jsonl"
    path.write_text(json.dumps({"text": "my boss lost cars."}) + "\n")
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("what", ["checkpoint", "few_shot", "general", "reward", "best_of"])
def test_the_format(
    what: str,
    precision: str,
    trained: Path,
    prepared: Path,
    people: Path,
    general: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[torch.dtype] = []
    load = checkpoint.load_base
    monkeypatch.setattr(
        checkpoint,
        "load_base",
        lambda name, where, dtype, *rest, **how: loaded.append(dtype) or load(name, where, dtype, *rest, **how),
    )
    values = {"out": tmp_path / "judged", "bootstrap": 20, "device": "cpu", "precision": precision}

    def settings(**more: Any) -> JudgeConfig:
        return JudgeConfig.model_validate(values | more)

    in_rounds = TrainConfig.saved(
        {"objective": "online-dpo", "reward": trained, "device": "cpu", "precision": precision}
    )
    ask: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: judge_checkpoint(trained, prepared, settings()),
        "few_shot": lambda: judge_few_shot(trained, people, settings(few_shot="1")),
        "general": lambda: judge_general(trained, settings(general=general)),
        "reward": lambda: RewardJudge(str(trained), settings()),
        "best_of": lambda: load_best_of(trained, round_settings(in_rounds, 1), "another base"),
    }
    ask[what]()
    assert set(loaded) == {torch.float32 if precision == "fp32" else torch.bfloat16}
