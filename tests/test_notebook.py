"""The notebook of first steps runs in a fresh process, uses only what `import prlhf` offers, and shows its outputs."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pytest

import prlhf

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebooks/first_steps.ipynb"


@pytest.fixture
def book() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text_of(book: Any) -> str:
    """The printed and returned outputs of the cells."""
    outputs = [output for cell in code_of(book) for output in cell.outputs]
    return "\n".join(output.get("text") or output["data"]["text/plain"] for output in outputs)


def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs/notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_uses_the_front_door_only(book: Any) -> None:
    tree = ast.parse("\n".join(cell.source for cell in code_of(book)))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"prlhf", "json", "statistics", "matplotlib", "importlib.util"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "prlhf"
    }
    assert {"prepare", "train", "load", "generate", "judge"} <= used <= set(prlhf.__all__)


@pytest.mark.parametrize("there", [True, False])
def test_it_installs_prlhf_where_that_is_missing(book: Any, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """As on Colab: the first cell does it, before anything of prlhf is imported."""
    first, second = (cell.source for cell in code_of(book)[:2])
    assert second.startswith("import prlhf")
    done: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda *words: done.append(words))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if there else None)
    exec(first, {"get_ipython": lambda: shell})
    assert done == ([] if there else [("pip", "install --quiet prlhf")])


def test_outputs_are_kept_without_what_changes(book: Any) -> None:
    nbformat.validate(book)
    for cell in code_of(book):
        assert cell.execution_count is None
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
        assert not any(output.get("execution_count") for output in cell.outputs)
    assert "user 4:" in text_of(book)
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")
    assert sum("image/png" in output.get("data", {}) for cell in code_of(book) for output in cell.outputs) == 1


@pytest.mark.slow
def test_it_runs_and_tells_users_apart(book: Any, tmp_path: Path) -> None:
    again = runner().executed(NOTEBOOK, tmp_path)
    assert [cell.source for cell in again.cells] == [cell.source for cell in book.cells]
    assert [len(cell.outputs) for cell in code_of(again)] == [len(cell.outputs) for cell in code_of(book)]
    shown = text_of(again)
    assert "user 1 prefers the long one\nuser 4 prefers the short one" in shown
    tables = [
        ast.literal_eval(output["data"]["text/plain"])
        for cell in code_of(again)
        for output in cell.outputs
        if output.get("data", {}).get("text/plain", "").startswith("{")
    ]
    accuracy, words, verdicts = tables
    assert set(accuracy) == set(verdicts) == {str(number) for number in range(1, 11)}
    assert min(accuracy.values()) > 0.8
    assert max(words[user] for user in "456") < min(words[user] for user in "12378")
    assert {user for user, verdict in verdicts.items() if verdict == "win"} == {"4", "5", "6"}
    assert (tmp_path / "judged/report.html").stat().st_size > 0
