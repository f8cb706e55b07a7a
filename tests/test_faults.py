"""The driver of `make faults`: it finds equal folders equal, and detects differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]


def write(folder: Path, name: str, content: object) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_an_outcome_has_everything_except_times(tmp_path: Path) -> None:
    from benchmarks.faults.outcome import differences, left_in

    for name, seconds in (("a", 1.0), ("b", 2.0)):
        write(
            tmp_path / name,
            "results.json",
            {"loss": 0.5, "train_seconds": seconds, "per_second": seconds, "calls": seconds},
        )
        write(tmp_path / name, "metrics.jsonl", '{"step": 1}\n')
        write(tmp_path / name, "model/weights", "same")
    whole = left_in(tmp_path / "a")
    assert list(differences(left_in(tmp_path / "b"), whole)) == []
    write(tmp_path / "b", "model/weights", "other")
    write(tmp_path / "b", "metrics.jsonl", '{"step": 1}\n{"half')
    write(tmp_path / "b", "results.json", {"loss": 0.5000001})
    write(tmp_path / "b", ".model.7.partial/x", "")
    found = [line.partition(" is ")[0] for line in differences(left_in(tmp_path / "b"), whole)]
    assert found == ["metrics.jsonl", "model/weights", "results.json/loss", ".model.7.partial/x"]
    assert [line.partition(" is ")[0] for line in differences({}, {"a": 1})] == ["a"]


def test_numbers_may_differ_by_rounding_where_workers_add_them_up(tmp_path: Path) -> None:
    from benchmarks.faults.outcome import differences

    assert list(differences({"loss": [1.0, 0.5]}, {"loss": [1.0 + 1e-7, 0.5]}, within=1e-6)) == []
    assert list(differences({"loss": [1.0, 0.5]}, {"loss": [1.0, 0.6]}, within=1e-6)) == ["loss[1] is 0.5, not 0.6"]


def test_a_process_that_a_command_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.faults import kills

    monkeypatch.setattr(kills, "GONE", 0.3)
    sleeps = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    left = subprocess.Popen(sleeps, env=os.environ | {kills.MARK: str(tmp_path)}, stdout=subprocess.PIPE)
    assert left.stdout
    left.stdout.readline()
    assert kills._still_there(tmp_path) == [str(left.pid)]
    assert left.wait(5) == -9
    assert kills._still_there(tmp_path) == []


def test_a_continued_kill_is_equal_and_damage_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kill of the cheapest command; then the undisturbed result is changed."""
    from benchmarks.faults.kills import Whole, kill, undisturbed
    from benchmarks.faults.stages import Stage

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = [
        {"user_id": "ann", "prompt": f"Why {i}?", "chosen": "Because.", "rejected": "No idea."} for i in range(2000)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Stage("prep", 1, ["prep", str(tmp_path / "mine.jsonl"), "--out", "data"])
    whole = undisturbed(stage, tmp_path)
    assert "data/train.parquet" in whole.left
    assert kill(stage, 0, whole, 1, tmp_path).wrong == []
    other = Whole(whole.left | {"data/train.parquet": "other"}, whole.first, whole.seconds)
    found = kill(stage, 1, other, 1, tmp_path).wrong
    assert len(found) == 1
    assert found[0].startswith("data/train.parquet is ")
