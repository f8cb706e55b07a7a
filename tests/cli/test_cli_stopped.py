"""What stops a command from outside, in a process of its own: a full disk, and Ctrl-C."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN = "\nfrom prlhf_cli.main import app\napp()"
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))"
INTERRUPT_PREP = """
import os, signal
from prlhf import dataset
def write(table, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGINT)
dataset.pq.write_table = write
"""
INTERRUPT_GENERATE = """
import os, signal
from prlhf.generate.output import OneFile
add = OneFile.add
def add_and_stop(self, block, rows):
    add(self, block, rows)
    os.kill(os.getpid(), signal.SIGINT)
OneFile.add = add_and_stop
"""


def start(prelude: str, *args: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", prelude + RUN, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_full_disk(here: Path) -> None:
    """Beyond the limit the system answers EFBIG (Python ignores SIGXFSZ), as it answers ENOSPC on a full disk."""
    done = start(FULL_DISK, "prep", "demo", "--comparisons", "20", "--out", "d")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write")
    assert "File too large" in done.stderr
    assert "raise the limit, or write elsewhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(here.iterdir()) == []


def test_full_disk_keeps_what_was_there(here: Path, make_prepared: Callable[[Path], Path]) -> None:
    make_prepared(here / "d")
    before = {path.name: path.read_bytes() for path in (here / "d").iterdir()}
    assert start(FULL_DISK, "prep", "demo", "--comparisons", "20", "--out", "d").returncode == 2
    assert {path.name: path.read_bytes() for path in (here / "d").iterdir()} == before
    assert [path.name for path in here.iterdir()] == ["d"]


def test_interrupted_prep(here: Path) -> None:
    done = start(INTERRUPT_PREP, "prep", "demo", "--comparisons", "2", "--out", "d")
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted: nothing was left half-written"
    assert "Traceback" not in done.stderr
    assert list(here.iterdir()) == []


def test_interrupted_generate(here: Path, trained: Path, prlhf: Callable[..., Any]) -> None:
    shutil.copytree(trained, "run")
    line = ["generate", "run", "--max-new-tokens", "2", "--max-prompts", "2", "--users", "ann,bob", "--json"]
    line += ["--batch-size", "1", "--out", "out.jsonl"]
    done = start(INTERRUPT_GENERATE, *line)
    assert done.returncode == 130, done.stderr
    assert "interrupted: stopped with" in done.stderr.splitlines()[-1]
    assert "run it again to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out.jsonl").exists()
    said = json.loads(prlhf(*line).stdout)
    assert (said["responses"], said["new"]) == (4, 3)
