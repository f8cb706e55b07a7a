"""Every recipe in the repository says how it is run, and its description is correct."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prlhf.config import STAGES, PrepConfig
from prlhf.data import prepare
from prlhf.recipes import load_recipe, resolve, shipped_recipes
from prlhf_cli import docs
from prlhf_cli.main import app

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/*.y*ml"))
TRAININGS = [
    command
    for path in RECIPES
    for command in re.findall(r"^# +(prlhf train .*)$", path.read_text(encoding="utf-8"), re.M)
    or [f"prlhf train --recipe {path.stem}"]
]


def test_recipes_are_found_by_name() -> None:
    assert {"demo", "smoke"} <= shipped_recipes().keys()
    assert sorted(shipped_recipes().values()) == RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_resolves(path: Path) -> None:
    sections = load_recipe(path)
    assert sections
    assert load_recipe(path.stem) == sections
    for stage, values in sections.items():
        given = values if stage != "prep" else {"dataset": "demo"} | values
        config = resolve(STAGES[stage], given)
        for key, value in values.items():
            assert type(getattr(config, key)) is type(value) or value is None or isinstance(value, str), key


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# +prlhf ", text), "the first line is the command that runs it"
    commands = re.findall(r"^# +(prlhf .*)$", text, re.M)
    for command in commands:
        docs.check_command(command)
    named = re.findall(r"--recipe ([^ ]+)", " ".join(commands))
    assert {Path(name).stem for name in named} <= {path.stem}, "the command runs this recipe and no other"
    assert path.stem in ("demo", "demo-quick") or named


@pytest.fixture(scope="module")
def little_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "demo"
    prepare(PrepConfig(dataset="demo", comparisons=2, out=out))
    return out


@pytest.mark.parametrize("command", TRAININGS)
def test_recipe_dry_runs(command: str, little_data: Path, tmp_path: Path) -> None:
    """With few rows, and with the bundled base in place of the recipe's, which must not be downloaded."""
    line = shlex.split(command.removeprefix("prlhf ").replace("--per-user ", ""))
    instead = ["--dataset", str(little_data), "--model", "tiny", "--device", "cpu", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*line, *instead, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout.splitlines()[-1])
    recipe = load_recipe(line[line.index("--recipe") + 1])["train"]
    assert plan["settings"]["beta"] == recipe.get("beta", plan["settings"]["beta"])
    assert plan["steps"] > 0
    assert plan["memory_gib"]["peak"] > plan["memory_gib"]["weights"] > 0
    assert plan["train"] == 20
    assert not (tmp_path / "run").exists()
