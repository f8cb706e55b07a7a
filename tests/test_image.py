"""The image: what it copies is there and is all that the build needs; what it and compose.yaml run exists."""

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
import yaml

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
    (installed,) = re.findall(r"pip install .*'\.\[(.+)\]'", BUILD)
    assert installed == "serve"
    assert installed in PROJECT["project"]["optional-dependencies"]
    (user,) = re.findall(r"useradd .*?(\w+) &&", FINAL)
    steps = [line.split(maxsplit=1) for line in FINAL.splitlines()]
    assert [name for name, _ in steps] == ["FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert dict(steps)["USER"] == user
    assert re.search(rf"--owner {user} {dict(steps)['WORKDIR']} /work/.cache$", dict(steps)["RUN"])


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


def test_compose_serves_a_run_with_keys_on_this_machine_alone() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    compose = yaml.safe_load(text)
    (service,) = compose["services"].values()
    assert (service["build"], service["image"]) == (".", "prlhf")
    command = service["command"]
    check_command(shlex.join(["prlhf", *command]))
    options = dict(zip(command[2::2], command[3::2], strict=True))
    (run, cache), (secret,) = service["volumes"], service["secrets"]
    assert run.rpartition(":")[2] == command[1]
    assert options["--keys"] == f"/run/secrets/{secret}"
    assert compose["secrets"].keys() == {secret}
    volume, _, place = cache.partition(":")
    assert volume in compose["volumes"]
    assert f"PRLHF_CACHE={place}/" in FINAL
    assert f"HF_HOME={place}/" in FINAL
    assert service["ports"] == [f"127.0.0.1:{options['--port']}:{options['--port']}"]
    assert f":{options['--port']}/healthz" in service["healthcheck"]["test"][-1]
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    (example,) = re.findall(r"^# +(\S.* docker compose up.*)$", text, re.M)
    assert {name for name, _, value in (word.partition("=") for word in example.split()) if value} == asked
    assert example in (ROOT / "docs/SERVING.md").read_text(encoding="utf-8")
