"""The workflows call targets that the Makefile has, every job ends, and every Python we name is tried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_the_image_is_built_from_what_was_tested() -> None:
    image = (ROOT / "docs/cluster/Dockerfile").read_text(encoding="utf-8")
    assert "--constraint /home/ray/prlhf/constraints.txt" in image
    ray = re.search(r"rayproject/ray:([\d.]+)-", image)
    assert ray
    assert f"ray=={ray[1]}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
