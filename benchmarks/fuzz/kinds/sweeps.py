"""The damaged folder of a sweep, which is continued. The trials are simulated, since the folder is tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from benchmarks.fuzz import damage
from benchmarks.fuzz.cases import Case, Wrong
from benchmarks.fuzz.kinds.material import Material

SPACE = {"alpha": [0.25, 0.5, 0.75]}


def sweep(rng: Random, work: Path, material: Material) -> Case:
    good = material.root / "sweep"
    if not good.exists():
        with _played():
            _sweep(good, material, {"space": SPACE, "metric": "score"}, resume=False)
    out = damage.fresh(good, work / "sweep")
    pattern = rng.choice(["*", "*.jsonl", "*.jsonl", "*.yaml", "shared.json"])
    how = damage.folder(rng, out, pattern)

    def go_on() -> Any:
        from prlhf.recipes import load_recipe

        recipe = load_recipe(out / "recipe.yaml")
        with _played():
            return _sweep(out, material, recipe.get("sweep", {}), True, recipe)

    return Case(how, go_on, [material.data], [], lambda said: _complete(out, said))


def _sweep(out: Path, material: Material, values: Any, resume: bool, recipe: Any = None) -> Any:
    from prlhf.config import SweepConfig
    from prlhf.recipes import resolve
    from prlhf.sweep.run import sweep as run_sweep

    sections = recipe or {"train": {"dataset": str(material.data), "model": str(material.base)}}
    return run_sweep(resolve(SweepConfig, values, {"out": out}), sections, resume=resume)


@contextmanager
def _played() -> Iterator[None]:
    """Every trial ends at once with a score."""

    def play(search: Any, others: Any, out: Path, *_: Any) -> None:
        from prlhf.sweep import run

        for trial in iter(search.next, None):
            trial.status, trial.result, trial.seconds = "done", {"score": 0.5, "steps": 3}, 1.0
            search.ended(trial)
        run._save(out, others, search)

    with patch("prlhf.sweep.run._run", play):
        yield


def _complete(out: Path, said: Any) -> None:
    for name in ("results.parquet", "best.yaml", "report.html", "results.jsonl", "recipe.yaml"):
        if not (out / name).is_file():
            raise Wrong(f"no {name}")
    if said["done"] < 1:
        raise Wrong("no trial is done")
