"""`prlhf generate --workers 2`, as it is typed: a Ray of its own, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import GenerateConfig
from prlhf.generate.run import generate
from prlhf.responses import read_responses


def line(run: Path, *more: str) -> list[str]:
    options = ["--temperature", "0", "--device", "cpu", "--json", "--workers", "2", *more]
    return [sys.executable, "-m", "prlhf_cli.main", "generate", str(run), *options]


def alone(run: Path, out: Path, **options: Any) -> bytes:
    generate(run, GenerateConfig.model_validate({"out": out, "temperature": 0, "device": "cpu"} | options))
    return out.read_bytes()


def test_the_whole_command(tmp_path: Path, trained: Path) -> None:
    """From another folder than the run's, in shards, with nothing on standard error but the progress."""
    options = ["--max-new-tokens", "6", "--block", "9", "--shards", "jsonl", "--out", "out"]
    done = subprocess.run(
        line(trained, *options), check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {key: said[key] for key in ("responses", "new", "blocks", "shards", "workers")} == {
        "responses": 32, "new": 32, "blocks": 4, "shards": 4, "workers": 2,
    }  # fmt: skip
    shown = done.stderr.strip().splitlines()
    assert all(line.startswith("generating: ") for line in shown), done.stderr
    assert (shown[0], shown[-1].partition(" in ")[0]) == ("generating: 0/32", "generating: 32/32")
    shards = sorted((tmp_path / "out").glob("part-*.jsonl"))
    whole = alone(trained, tmp_path / "whole.jsonl", max_new_tokens=6)
    assert b"".join(path.read_bytes() for path in shards) == whole


def started(run: Path, here: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, when its second shard is there."""
    options = ["--max-new-tokens", "60", "--block", "2", "--batch-size", "1", "--out", str(out)]
    running = subprocess.Popen(
        line(run, *options), cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 240
    while len(list(out.glob("part-*"))) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    return running


def written(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}


def goes_on(run: Path, here: Path, out: Path, before: dict[str, int]) -> None:
    """The command again: no shard of `before` is written again, and all are there as one process writes them."""
    assert 2 <= len(before) < 16
    options = ["--max-new-tokens", "60", "--block", "2", "--batch-size", "1", "--out", str(out)]
    done = subprocess.run(line(run, *options), check=False, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["blocks"] == 16 - len(before)
    assert before.items() <= written(out).items()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    alone(run, here / "whole.jsonl", max_new_tokens=60)
    assert read_responses(out) == read_responses(here / "whole.jsonl")


@pytest.mark.slow
def test_a_killed_command_repeats_no_finished_block(tmp_path: Path, trained: Path) -> None:
    running = started(trained, tmp_path, tmp_path / "out")
    running.kill()
    running.communicate()
    goes_on(trained, tmp_path, tmp_path / "out", written(tmp_path / "out"))


def sessions() -> list[str]:
    return subprocess.run(["ps", "-eo", "sess="], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
def test_ctrl_c_stops_workers_and_says_how_to_continue(tmp_path: Path, trained: Path) -> None:
    running = started(trained, tmp_path, tmp_path / "out")
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground
    _, shown = running.communicate(timeout=120)
    assert running.returncode == 130, shown
    assert shown.splitlines()[-1].endswith("of 32 responses written; run it again to continue")
    assert "Traceback" not in shown
    deadline = time.monotonic() + 10  # Ray's own processes notice that their driver has gone
    while str(running.pid) in sessions():  # nothing that it started is left
        assert time.monotonic() < deadline
        time.sleep(0.2)
    goes_on(trained, tmp_path, tmp_path / "out", written(tmp_path / "out"))
