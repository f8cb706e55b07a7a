"""Private names of libraries: each behind a door of its own, which has a plain answer where the name is gone."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray._private import services, state

from prlhf.cluster import address_of_auto, machines_to_come
from prlhf.kernels.tree_attention import attend_over_packs, implementation_of, way_of

ROOT = Path(__file__).parents[1]

DOORS = {
    "prlhf/kernels/onednn.py": {"_linear_pointwise"},  # tests/kernels/test_onednn.py
    "prlhf/kernels/tree_attention.py": {"_attn_implementation"},
    "prlhf/cluster.py": {"ray._private.services", "ray._private.state"},
}
PUBLIC = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples


def private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__")) and name not in PUBLIC


def own_names(tree: ast.AST) -> set[str]:
    """The private names that a module defines: functions, classes, variables, attributes of its objects."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
            found.add(node.attr)
    return found


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def borrowed(tree: ast.AST) -> Iterator[str]:
    """Every private name that a module takes from a library: an attribute, an import, a method that it overrides."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and not of_self(node) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("prlhf"):
            if any(map(private, [*node.module.split("."), *(name.name for name in node.names)])):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if any(map(private, name.name.split("."))))
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "getattr", "hasattr", "setattr"):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            yield from (text for text in texts if any(map(private, text.split("."))))
        elif isinstance(node, ast.FunctionDef) and private(node.name) and overrides(node):
            yield node.name


def overrides(node: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "override" for mark in node.decorator_list)


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_private_names_stay_behind_their_doors() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(ROOT.glob("prlhf/**/*.py")):
        for name in borrowed(ast.parse(path.read_text(encoding="utf-8"))):
            found[str(path.relative_to(ROOT))].add(name)
    assert found == DOORS


@pytest.mark.parametrize(
    "line",
    [
        "lm._no_split_modules",
        "model._is_prepared = True",
        "from ray._private import state",
        "import ray._private.state",
        "importlib.import_module('ray._private')",
        "getattr(config, '_attn')",
        "class A(B):\n @override\n def _save(self): 0",
    ],
)
def test_what_counts_as_borrowed(line: str) -> None:
    assert len(list(borrowed(ast.parse(line)))) == 1


@pytest.mark.parametrize(
    "line",
    ["self._own = 1\nother._own", "def _f(): 0\n_f()", "x._replace(a=1)", "from prlhf.a import _b", "x.__dict__"],
)
def test_what_does_not(line: str) -> None:
    assert not list(borrowed(ast.parse(line)))


# ---- where a name is gone ----


def test_the_cluster_of_auto_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(services, "canonicalize_bootstrap_address")
    assert address_of_auto() is None


def test_a_cluster_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimpleNamespace(resources={"CPU": 8.0}, max_count=-1)
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=[group]))
    assert machines_to_come() == [({"CPU": 8.0}, -1)]
    monkeypatch.delattr(state, "state")
    assert machines_to_come() == []


def test_without_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def gone(name: str) -> object:
        if name.startswith("ray._private"):
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", gone)
    assert ray.__version__
    assert address_of_auto() is None
    assert machines_to_come() == []


def test_attention_that_is_not_named_is_left_alone() -> None:
    """Packs are read with a mask then."""
    lm = SimpleNamespace(config=SimpleNamespace(), device=torch.device("cpu"))
    assert implementation_of(lm.config) == ""
    attend_over_packs(lm)
    assert way_of(lm) == "dense"
