"""Real signals to a real sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow
SOME_SECONDS = 120
STEPS = 1000


@pytest.fixture
def line(make_config: Any, tmp_path: Path) -> list[str]:
    """Three trials, one after another, with checkpoints. Tune waits up to 10 s for one to stop: each takes longer."""
    train = make_config(tmp_path, max_steps=STEPS, save_every=10, keep_checkpoints=1).model_dump(mode="json")
    del train["out"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"train": train}))
    alphas = "alpha=0.1,0.2,0.3"
    options = ["--space", alphas, "--concurrent", "1", "--out", str(tmp_path / "sweep")]
    return ["--recipe", str(tmp_path / "r.yaml"), *options]


def start(line: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "prlhf_cli.main", "sweep", *line],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def rows(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    end = time.monotonic() + SOME_SECONDS
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def second_is_under_way(out: Path) -> bool:
    found = rows(out)
    return (
        len(found) > 1
        and found[1]["status"] == "running"
        and any((out / "trial-001/checkpoints").glob("*/sha256.json"))
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_done_stays_done(number: signal.Signals, line: list[str], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    process = start(line)
    wait_for(process, lambda: second_is_under_way(out))
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped with 1 of 3 trials done; continue with: prlhf sweep --resume --out" in said
        assert rows(out)[1]["status"] == "interrupted"
    time.sleep(5)  # the rest of Ray needs this to notice
    left = subprocess.run(["pgrep", "-f", str(out)], check=False, capture_output=True, text=True).stdout.split()
    assert left == []
    first = (out / "trial-000/model/user_model.safetensors").stat().st_mtime_ns
    steps_before = len((out / "trial-001/metrics.jsonl").read_text().splitlines())
    assert steps_before >= 10

    process = start(["--resume", "--out", str(out), "--json"])
    told, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    report = json.loads(told.splitlines()[-1])
    assert (report["done"], report["skipped"]) == (3, 1)
    assert (out / "trial-000/model/user_model.safetensors").stat().st_mtime_ns == first
    again = json.loads((out / "trial-001/results.json").read_text())
    assert again["comparisons_per_second"] * again["train_seconds"] < 2 * (
        STEPS - 5
    )  # it continued, and did not start again
