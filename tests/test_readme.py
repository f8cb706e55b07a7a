"""The commands and the Python of README.md run as pasted, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str) -> list[str]:
    """The indented lines of a section."""
    section = README.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^ {4}(.+)$", section, re.M)


def ran(command: list[str], folder: Path) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_the_python_writes_for_a_user(tmp_path: Path) -> None:
    lines = block("Five lines of Python")
    assert len([line for line in lines if not line.startswith("import")]) == 4
    assert ran([sys.executable, "-c", "\n".join(lines)], tmp_path).strip()
    assert (tmp_path / "runs/first/model").is_dir()


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    lines = block("Commands")
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("prlhf ")
        ran([sys.executable, "-m", "prlhf_cli.main", *line.split()[1:]], tmp_path)
    assert (tmp_path / "judged/report.html").stat().st_size > 0
    assert (tmp_path / "accuracy/results.json").stat().st_size > 0
