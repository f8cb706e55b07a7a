"""The workflows call targets that the Makefile has, every job ends, and every Python we name is tried."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from prlhf import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="the source archive has no workflows")


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_an_end_and_calls_what_there_is(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert True in workflow, "when it runs"  # YAML reads `on` as true
    for job in jobs(path).values():
        assert 0 < job["timeout-minutes"] <= 180
        assert job["runs-on"] == "ubuntu-latest"
        assert all(step.keys() & {"uses", "run"} for step in job["steps"])
        made = {target for line in commands(job) for target in re.findall(r"\bmake (\w+)", line)}
        assert made <= TARGETS


def test_what_runs_when() -> None:
    ran = {path.stem: " ".join(line for job in jobs(path).values() for line in commands(job)) for path in WORKFLOWS}
    assert all(f"make {target}" in ran["ci"] for target in ("check", "test", "package", "site"))
    assert "make slow" in ran["nightly"]
    assert "constraint" not in ran["weekly"]
    local = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)", local, re.M) == ["check", "package", "site", "test"]


def test_the_upper_bounds_are_lifted_by_the_weekly_run() -> None:
    """The expression of the workflow, on the real file: no upper bound of a dependency is left."""
    (line,) = (line for line in commands(jobs(ROOT / ".github/workflows/weekly.yml")["newest"]) if "sed" in line)
    found = re.search(r"s/(.*)/\\1\"/", line)
    assert found
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lifted = re.sub(found[1], r'\1"', text, flags=re.M)
    required = text.partition("dependencies = [")[2].partition("\n]")[0]
    assert required.count(",<") > 15
    assert ",<" not in lifted.partition("dependencies = [")[2].partition("\n]")[0]
    assert "filterwarnings" in lifted


def test_a_release_is_what_was_built_and_checked() -> None:
    """The job that may publish has no source and no stored token: it takes the files of the job that checked them."""
    build, publish = jobs(ROOT / ".github/workflows/release.yml").values()
    ran = commands(build)
    order = [next(at for at, line in enumerate(ran) if words in line) for words in (
        "GITHUB_REF_NAME", "make package", "python -m build", "twine check --strict dist/*",
    )]  # fmt: skip
    assert order == sorted(order)
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "pypi"
    assert commands(publish) == []
    download, upload = publish["steps"]
    assert download["with"] == {
        key: value for key, value in build["steps"][-1]["with"].items() if key in ("name", "path")
    }
    assert upload["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in upload
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v9.9.9", 1)])
def test_a_tag_has_to_be_the_version(tag: str, code: int) -> None:
    line = next(line for line in commands(jobs(ROOT / ".github/workflows/release.yml")["build"]) if "REF_NAME" in line)
    done = subprocess.run(["bash", "-c", line], check=False, cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag})
    assert done.returncode == code


def test_the_image_is_built_from_what_was_tested() -> None:
    image = (ROOT / "docs/cluster/Dockerfile").read_text(encoding="utf-8")
    assert "--constraint /home/ray/prlhf/constraints.txt" in image
    ray = re.search(r"rayproject/ray:([\d.]+)-", image)
    assert ray
    assert f"ray=={ray[1]}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
