"""The Dockerfile: what it copies is there and is all that the build needs, and what it runs exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from prlhf_cli.docs import check_command

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BUILD, FINAL = re.sub(r"^#.*\n", "", TEXT, flags=re.M).split("\n\n")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def copied() -> list[str]:
    """What the build stage copies from the clone."""
    return [name for line in re.findall(r"^COPY (.+)$", BUILD, re.M) for name in line.split()[:-1]]


def test_it_copies_what_there_is_and_the_context_has_nothing_else() -> None:
    assert copied()
    assert all((ROOT / name).exists() for name in copied())
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == set(copied())
    assert lines.index("*") < lines.index(f"!{copied()[0]}")


def test_what_it_copies_is_enough_for_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=source, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"prlhf/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    expected |= {"prlhf/pages.css", "prlhf/assets/tiny-base.yaml", "prlhf_cli/options.json"}
    assert expected <= held


def test_versions_are_those_of_the_tests_and_nobody_is_root() -> None:
    assert "--constraint constraints.txt" in BUILD
    assert "--no-cache-dir" in BUILD
    images = re.findall(r"^FROM (\S+)", TEXT, re.M)
    assert images == ["python:3.11-slim-bookworm"] * 2
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    (user,) = re.findall(r"useradd .*?(\w+) &&", FINAL)
    steps = [line.split(maxsplit=1) for line in FINAL.splitlines()]
    assert [name for name, _ in steps] == ["FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert dict(steps)["USER"] == user
    assert re.search(rf"--owner {user} {dict(steps)['WORKDIR']}$", dict(steps)["RUN"])


def test_what_it_runs_exists() -> None:
    (command,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', FINAL, re.M)
    assert command in PROJECT["project"]["scripts"]
    (venv,) = re.findall(r"RUN python -m venv (\S+)", BUILD)
    assert f"COPY --from=build {venv} {venv}" in FINAL
    assert f"PATH={venv}/bin:$PATH" in FINAL
    (example,) = re.findall(r"docker run .*", TEXT)
    check_command(example[example.index("prlhf ") :])


@pytest.mark.parametrize("page", ["docs/GUIDE.md", "README.md"])
def test_pages_run_it_as_it_is(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for example in re.findall(r"^ +(docker run .*)$", text, re.M):
        words = shlex.split(example)
        check_command(shlex.join(words[words.index("prlhf") :]))
