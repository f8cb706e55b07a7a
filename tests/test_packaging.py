"""What pyproject.toml promises: ranges that were tested, a source archive that can be tested, warnings that count."""

from __future__ import annotations

import ast
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIRED = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
WIDE = {"torch"}  # machines come with theirs


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("one", REQUIRED, ids=lambda one: one.name)
def test_a_range_is_not_wider_than_what_is_tested(one: Requirement) -> None:
    tested = pinned()[canonicalize_name(one.name)]
    bounds = {each.operator: Version(each.version) for each in one.specifier}
    assert set(bounds) == {">=", "<"}
    assert one.specifier.contains(tested)
    assert bounds["<"].major <= tested.major + 1
    if one.name not in WIDE:
        assert bounds[">="].release[:2] == tested.release[:2]


def test_the_source_archive_holds_what_tests_import() -> None:
    held = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    ours = {name for name in imported if (ROOT / name).is_dir()}
    assert {"prlhf", "prlhf_cli", "benchmarks"} <= ours <= set(held)
    assert "constraints.txt" in held


@pytest.mark.parametrize("kind", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["prlhf.train.run", "prlhf_cli.main"])
def test_what_our_calls_are_warned_of_is_an_error(kind: type[Warning], module: str) -> None:
    with pytest.raises(kind, match="use the new one"):
        warnings.warn_explicit("use the new one", kind, "file.py", 1, module)
    warnings.warn_explicit("use the new one", kind, "file.py", 1, "transformers.trainer")
