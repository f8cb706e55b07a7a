"""The architecture by its imports: one direction, no imports between siblings, and no terminal in the library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A part may import parts of the lines above it, but none of its own line or below.
LAYERS = [
    ["errors"],
    ["parse", "extensions", "files", "results"],
    ["progress", "config", "forum", "kernels"],
    ["legacy_folders"],
    ["folders"],
    ["dataset"],
    ["source", "environment", "recipes"],
    ["responses", "html", "cluster", "choice_store"],
    ["model"],
    ["generate"],
    ["online"],
    ["data", "train", "judge"],
    ["runs"],
    ["sweep", "demo", "start_training", "loaded", "conversation", "export", "upload", "adapt", "view"],
    ["serve"],
    ["api"],
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

FILES = sorted(ROOT.glob("prlhf/**/*.py"))
COMMANDS = sorted(ROOT.glob("prlhf_cli/*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import, also inside functions; `from a import b` is `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(ROOT / "prlhf").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT / "prlhf").parts[0].removesuffix(".py")
    for line, name in imported(tree_of(path)):
        package, _, rest = name.partition(".")
        assert package not in ("typer", "rich", "prlhf_cli"), f"{path}:{line}: the library knows no terminal"
        other = rest.partition(".")[0]
        if package == "prlhf" and other != part and other in LEVEL:
            if part == "__init__":  # for type checkers only; test_api.py checks that nothing is imported
                continue
            assert LEVEL[other] < LEVEL[part], f"{path}:{line}: {part} imports {other}"


@pytest.mark.parametrize("path", COMMANDS, ids=name_of)
def test_commands_import_nothing_heavy_before_they_run(path: Path) -> None:
    top = ast.Module([node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for line, name in imported(top):
        package = name.partition(".")[0]
        light = package in {"typer", "rich", "typing_extensions", "prlhf_cli", *sys.stdlib_module_names}
        light = light or name == "prlhf.__version__" or name.startswith("prlhf.errors.")
        assert light, f"{path}:{line}: import {name} in the command's body"


def test_one_module_shows() -> None:
    """Only prlhf_cli.show, its bars and the questions of adapt use rich, so that all commands look alike."""
    users = [path.name for path in COMMANDS for _, name in imported(tree_of(path)) if name.partition(".")[0] == "rich"]
    assert set(users) == {"show.py", "bars.py", "asking.py"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not inside packages either: one can read a package from its first module to its last."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
    names = {name.removesuffix(".__init__"): name for name in modules}
    needs = {
        module: {
            names.get(name, names.get(name.rpartition(".")[0], module)) for _, name in imported(tree_of(path))
        } - {module}
        for module, path in modules.items()
    }  # fmt: skip
    while ready := {module for module, needed in needs.items() if not needed}:
        needs = {module: needed - ready for module, needed in needs.items() if module not in ready}
    assert not needs
