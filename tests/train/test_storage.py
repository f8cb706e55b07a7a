"""The run's folder on a storage: only a run's, and nothing in it is removed that others put there."""

from __future__ import annotations

from pathlib import Path

import pytest

from prlhf.errors import PrlhfError
from prlhf.train.storage import Store, fetch_results


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/recipe.yaml").write_text("train: {}\n")
    return tmp_path / "runs/mine/recipe.yaml"


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def write(path: Path, text: str = "theirs") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", ["notes.txt", "recipe.yaml", "checkpoints/model.bin", "checkpoints/checkpoint-1-2/x"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_is_not_a_run_is_refused(name: str, scheme: str, recipe: Path, tmp_path: Path) -> None:
    write(tmp_path / "storage/mine" / name)
    store = Store(f"{scheme}{tmp_path}/storage", recipe.parent)
    with pytest.raises(PrlhfError, match=r"storage/mine exists and is not a training run.*another --out or --storage"):
        store.claim()
    assert (tmp_path / "storage/mine" / name).read_text() == "theirs"


def test_a_place_of_its_own_is_claimed_and_given_back(recipe: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "storage"), recipe.parent)
    store.claim()
    store.begin(recipe)
    assert left(tmp_path / "storage/mine") == ["prlhf.json", "recipe.yaml"]
    store.claim()  # as to go on
    store.give_back()
    assert left(tmp_path / "storage") == []
    assert left(recipe.parent) == ["recipe.yaml"]


def test_only_what_is_ours_is_removed_at_the_end(recipe: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "storage"), recipe.parent)
    store.begin(recipe)
    checkpoints = tmp_path / "storage/mine/checkpoints"
    for name in ("checkpoint-7-2/sha256.json", "final-7/metrics.jsonl", "final-7/results.json", "final-7/model/w"):
        write(checkpoints / name, "ours")
    write(checkpoints / ".validate_storage_marker", "")
    for name in ("checkpoint-best/w", "final.txt", "checkpoint-1-2"):
        write(checkpoints / name)
    write(tmp_path / "storage/mine/notes.txt")
    fetch_results(store, recipe.parent)
    assert left(recipe.parent) == ["metrics.jsonl", "model", "model/w", "recipe.yaml", "results.json"]
    kept = ["checkpoints", *(f"checkpoints/{name}" for name in ("checkpoint-1-2", "checkpoint-best"))]
    assert left(tmp_path / "storage/mine") == [
        *kept,
        "checkpoints/checkpoint-best/w",
        "checkpoints/final.txt",
        "notes.txt",
    ]


def test_the_run_folder_as_storage(recipe: Path) -> None:
    """Its own rule is asked elsewhere; its recipe stays."""
    store = Store(None, recipe.parent)
    store.claim()
    store.begin(recipe)
    write(recipe.parent / "checkpoints/checkpoint-7-2/x", "ours")
    store.give_back()
    assert left(recipe.parent) == ["recipe.yaml"]


def test_candidates_come_with_the_results(recipe: Path, tmp_path: Path) -> None:
    """Those of the workers, whole: not beside rounds that the run had before it was resumed on workers."""
    store, run = Store(str(tmp_path / "storage"), recipe.parent), recipe.parent
    write(run / "candidates/round-1.parquet", "before")
    write(run / "candidates/round-9.parquet", "before")
    write(run / "candidates/notes.txt", "somebody's")
    final = tmp_path / "storage/mine/checkpoints/final-7"
    for name in ("candidates/round-1.parquet", "candidates/round-2.parquet", "metrics.jsonl", "model/prlhf.json"):
        write(final / name, "workers'")
    fetch_results(store, run)
    names = [
        "candidates",
        "candidates/notes.txt",
        "candidates/round-1.parquet",
        "candidates/round-2.parquet",
        "metrics.jsonl",
        "model",
    ]
    assert left(run) == [*names, "model/prlhf.json", "recipe.yaml"]
    assert (run / "candidates/round-1.parquet").read_text() == "workers'"
