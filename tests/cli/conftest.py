"""Running `prlhf` in this process, in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prlhf_cli.main import app

Run = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def prlhf() -> Run:
    """prlhf("train", "--k", "3"): the result of that command line."""
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args], prog_name="prlhf")


@pytest.fixture
def prlhf_json(prlhf: Run) -> Run:
    """The same with --json: what the last line of standard output says."""

    def run(*args: Any) -> Any:
        result = prlhf(*args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout.rstrip("\n").split("\n")[-1])

    return run
