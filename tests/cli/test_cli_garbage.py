"""The search for garbage: rare in a command's process, and not among what was imported."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prlhf_cli import garbage

REFUSED_COMMAND = """
import atexit, gc
atexit.register(lambda: print("at exit", gc.get_freeze_count() > 1000))  # the last to run
before = gc.get_threshold()
from prlhf_cli.main import app
try:
    app(["generate", "--temperature", "-1"])
except SystemExit as exit:
    print("code", exit.code)
now = gc.get_threshold()
print("young", now[:2] == before[:2], "full", now[2], "frozen", gc.get_freeze_count())
"""


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_full_searches_are_rare_and_none_is_made_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED_COMMAND], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["code 2", f"young True full {garbage.FULL} frozen 0", "at exit True"]


def test_training_begins_with_what_was_imported_spared(
    here: Path, prlhf: Callable[..., Any], prepared: Path, monkeypatch: pytest.MonkeyPatch, thawed: None
) -> None:
    frozen = []

    def train(*given: Any) -> dict[str, Any]:
        frozen.append(gc.get_freeze_count())
        summary = {"run": "r", "objective": "sft", "dataset": "d", "model": None, "steps": 1, "loss": None}
        return summary | {"train_seconds": 1.0}

    monkeypatch.setattr("prlhf.start_training.train", train)
    result = prlhf("train", "--dataset", prepared, "--json")
    assert result.exit_code == 0, result.stderr
    assert frozen[0] > 100_000


def test_only_once(thawed: None) -> None:
    """What a process's first command leaves behind can be collected when the second has begun."""
    garbage.spare_imports()
    first = gc.get_freeze_count()
    later = [[i] for i in range(1000)]
    garbage.spare_imports()
    assert gc.get_freeze_count() <= first
    assert len(later) == 1000
