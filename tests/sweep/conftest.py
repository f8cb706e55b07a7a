"""A sweep without Ray: the same search, log and trial function, one trial after the other in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prlhf.config import SweepConfig
from prlhf.sweep import run as sweep_run
from prlhf.sweep.settings import Settings

Run = Callable[..., dict[str, Any]]


class Trainer:
    """Replaces training: records the settings, reports `reports` evaluations, and returns `result`."""

    def __init__(self, result: Callable[[Any], dict[str, Any]], reports: int = 0) -> None:
        self.settings: list[Settings] = []
        self.result, self.reports = result, reports

    def __call__(self, settings: Settings, cluster: Any, out: Path, report: Any) -> dict[str, Any]:
        self.settings.append(settings)
        for step in range(self.reports):
            report({"step": step + 1, "eval/score": float(step)})
        return self.result(settings.train)

    def points(self, *keys: str) -> list[tuple[Any, ...]]:
        return [tuple(getattr(settings.train, key) for key in keys) for settings in self.settings]


@pytest.fixture
def run_sweep(monkeypatch: pytest.MonkeyPatch, prepared: Path) -> Run:
    """run_sweep(trainer, out, {"alpha": "0.2,0.5"}, train={...}, resume=..., **sweep): the result of `sweep`."""
    from ray.tune.search import Searcher

    from prlhf.sweep import on_ray
    from prlhf.sweep import trial as one_trial

    def one_by_one(search: Any, others: Any, out: Path, cluster: Any, progress: Any, display: Any) -> None:
        save = partial(sweep_run._save, out, others, search)
        save()
        stop = on_ray.SweepStopper()
        logger = on_ray.TrialLogger(search, save, display, stop)
        points = on_ray.TuneSearch(search, out, cluster)
        display.begin(search.sweep, search.trials, search.total)
        try:
            while not stop.stop_all() and (config := points.suggest("id")) != Searcher.FINISHED:
                trial = SimpleNamespace(config=config)
                logger.on_trial_start(0, [], trial)
                monkeypatch.setattr(
                    on_ray.tune, "report", lambda told, trial=trial: logger.on_trial_result(0, [], trial, told)
                )
                on_ray.in_worker(config)
                logger.on_trial_complete(0, [], trial)
        finally:
            logger.interrupt()
        if stop.error:
            raise stop.error

    def call(trainer: Any, out: Path, space: dict[str, Any], train: Any = None, **changes: Any) -> dict[str, Any]:
        resume, display = changes.pop("resume", False), changes.pop("display", sweep_run.NO_DISPLAY)
        judge = changes.pop("judge", None)
        config = SweepConfig.model_validate({"space": space, "out": out, "metric": "score"} | changes)
        monkeypatch.setattr(sweep_run, "_run", one_by_one)
        monkeypatch.setattr(one_trial, "run_trial", trainer)
        clusters = {"user_model": "cluster"} if "k" in space else {}
        sections = {"train": {"dataset": str(prepared), "beta": 0.5} | clusters | (train or {})}
        if judge:
            sections["judge"] = {"judge": judge}
        return sweep_run.sweep(config, sections, resume=resume, display=display)

    return call


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of the log."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    return read_rows


@pytest.fixture
def trainer() -> type[Trainer]:
    return Trainer
