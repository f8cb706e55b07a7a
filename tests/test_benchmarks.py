"""The benchmarks of docs/PERFORMANCE.md run with the library: each makes one small step."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


def test_a_step_of_the_users_benchmark(tmp_path: Path) -> None:
    from benchmarks.users import KINDS, STORED, loads, train

    for number, options in enumerate(KINDS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        found: dict[str, Any] = train("tiny", options, [10], folder)
        assert found["step_gib"] > 0
        if options.get("user_init") == "zero":
            found |= loads("tiny", options, [10], folder)["10"]
            assert {name for name in STORED if name != "load_one_gib"} <= set(found)
            assert all(value > 0 for value in found.values())


@pytest.mark.parametrize("engine", ["ours", "ours-gc", "gates", "onednn", "mkl", "paper"])
def test_a_training_step_moves_the_model(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import train_step

    monkeypatch.setitem(train_step.SHAPES, "small", replace(train_step.SHAPES["psoups"], prompt=9, response=4))
    args = argparse.Namespace(shape="small", model="tiny", precision="fp32", pack_tokens=None, set=[])
    seconds = train_step.measure({engine: train_step.make_step(engine, args)}, repeats=2)
    report = train_step.summarize(args, seconds, {engine: train_step.peak_bytes()})
    assert report["comparisons"] == 6
    assert len(report["engines"][engine]["all_seconds"]) == 2
    assert engine in train_step.table(report)
    assert " s  aten." in train_step.by_operator(train_step.make_step(engine, args), 1)


def test_posts_that_all_users_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import grouping
    from prlhf.dataset import read_prepared

    monkeypatch.setattr(grouping, "POSTS", 1)
    apart, together = grouping.measure(0, tmp_path, steps=1)
    assert apart["accuracy"] != together["accuracy"] or apart["loss"] != together["loss"]
    rows = read_prepared(tmp_path / "data").train
    assert len({row.prompt for row in rows}) * len({row.user_id for row in rows}) == len(rows) == 600
    assert "together" in grouping.as_table([apart, together])


def test_questions_to_people_of_a_crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.ask import as_table, measure
    from prlhf import prepare, train
    from prlhf.progress import SILENT

    monkeypatch.setattr("prlhf.data.demo_crowd.EVAL_COMPARISONS", 4)
    crowd: dict[str, Any] = {"users": 4, "comparisons": 2, "unseen_fraction": 0.5, "reveal": 0}
    data = prepare("demo-crowd", out=tmp_path / "data", **crowd)
    few: dict[str, Any] = {"max_steps": 1, "batch_size": 2, "lora_r": 2, "user_in": "adapter", "user_text": False}
    train(data, out=tmp_path / "run", device="cpu", **few)
    found = measure(tmp_path / "run", [0, 1], [1, 3], 2, (6, 4), 0.5, [3], SILENT)
    for way in ("chosen", "random"):
        assert [len(one) for one in found["linear"][way][3]] == [2, 2]
        assert all(0 <= value <= 1 for each in (found["linear"][way][1], found["read"][way][3]) for value in each[0])
    assert "whole pool" in as_table(found)


def test_a_round_of_the_server_benchmark(tmp_path: Path, tiny_base: Path) -> None:
    from benchmarks import serve

    args = argparse.Namespace(clients=[1, 2], requests=3, new=4, system=2, words=(4, 12))
    run = serve.write_run(tmp_path / "run", str(tiny_base))
    with serve.served(run) as url:
        rows = serve.measure(url, "run", args, personal=True)
    assert [(row["clients"], row["users"], row["requests"]) for row in rows] == [(1, 64, 3), (2, 64, 4), (2, 1, 4)]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert all(0 < row["first_token"]["median"] <= row["response"]["p95"] for row in rows)
    assert serve.table(rows).count("\n") == 4


def test_the_quick_benchmark_says_what_became_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import quick

    found = {"step": 4.0, "generation": 1.5}
    monkeypatch.setattr(quick, "RECORDED", tmp_path / "recorded.json")
    monkeypatch.setattr(quick, "ratios", lambda _repeats: dict(found))
    monkeypatch.setattr(sys, "argv", ["quick"])
    assert quick.main() == 0
    assert "nothing was recorded" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["quick", "--record"])
    assert quick.main() == 0
    monkeypatch.setattr(sys, "argv", ["quick"])
    found |= {"step": 3.3, "generation": 1.15}
    assert quick.main() == 1
    step, generation = capsys.readouterr().out.splitlines()[-2:]
    assert "3.30  step (recorded 4.00)" in step
    assert "SLOWER" in generation
    assert "SLOWER" not in step


def test_the_quick_benchmark_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import quick

    monkeypatch.setattr("benchmarks.generate.PROMPTS", 8)
    found = quick.generation(1) | quick.users(1)
    assert len(found) == 3
    assert all(ratio > 0 for ratio in found.values())
