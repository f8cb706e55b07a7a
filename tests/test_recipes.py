"""Every recipe in the repository says how it is run, and what it says is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prlhf.config import STAGES, load_recipe, resolve, shipped_recipes
from prlhf_cli import docs

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/**/*.y*ml"))


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
    assert path.stem == "demo" or named
