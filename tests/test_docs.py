"""Pages that are made from the code are up to date, and the site's table of contents holds every page."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from prlhf import extensions
from prlhf.config import TrainConfig
from prlhf.dataset import Comparison

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "name"), [("ARCHITECTURE", "architecture"), ("RECIPES", "recipes"), ("SETTINGS", "settings")]
)
def test_a_written_page_is_that_of_the_code(page: str, name: str) -> None:
    assert (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") == script(name).page(), "stale; run: make docs"


def test_the_architecture_names_every_package_and_files_that_exist() -> None:
    above = script("architecture").ABOVE
    packages = {"prlhf_cli", *(str(p.parent.relative_to(ROOT)) for p in (ROOT / "prlhf").glob("**/__init__.py"))}
    assert {name for name in packages if name.count("/") < 2} == set(re.findall(r"^\| `(prlhf.*)/` \|", above, re.M))
    trips = above.partition("## Two trips")[2]
    assert all((ROOT / "prlhf" / name).exists() for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", trips))


def test_the_options_are_those_of_the_declarations() -> None:
    there = (ROOT / "prlhf_cli/options.json").read_text(encoding="utf-8")
    assert there == script("settings").options_json(), "stale; run: make docs"


def test_every_recipe_is_in_the_group_of_its_base() -> None:
    recipes = script("recipes")
    made_up, small, large = recipes.GROUPS
    assert [recipes.group_of(name) for name in ("demo", "sweep-k-tldr", "tldr")] == [made_up, small, large]


def test_the_site_has_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {page for entry in config["nav"] for page in entry.values()}
    pages = [path for kind in ("*.md", "notebooks/*.ipynb") for path in (ROOT / "docs").glob(kind)]
    assert listed == {str(path.relative_to(ROOT / "docs")) for path in pages}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_glossary_names_what_the_code_has() -> None:
    """20 words; in the last column a file, a name in a module, a setting, or a column of the data."""
    text = (ROOT / "docs/GLOSSARY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len(rows[2:]) == 20
    for word, _, where in rows[2:]:
        for name in re.findall(r"`([^`]+)`", where):
            if "/" in name:
                assert (ROOT / name).exists() or (ROOT / "prlhf" / name).exists(), word
            elif "." in name:
                module, _, attribute = name.rpartition(".")
                assert hasattr(importlib.import_module(f"prlhf.{module}"), attribute), word
            else:
                assert name in {*TrainConfig.model_fields, *Comparison.__dataclass_fields__}, word


def test_contributing_names_files_and_decorators_that_exist() -> None:
    kinds = {each.kind.replace(" ", "_") for each in vars(extensions).values() if isinstance(each, extensions.Registry)}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`@(\w+)\(", text)) == kinds
    named = re.findall(r"`((?:prlhf|tests|benchmarks|docs|recipes)/[^` ]+)`", text)
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
