"""A sweep without Ray: the same search, record and trial function, one trial after the other in this process."""

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
    """Stands in for a trial: remembers what it was asked, answers by `result`, reporting `reports` before."""

    def __init__(self, result: Callable[[Any], dict[str, Any]], reports: int = 0) -> None:
        self.asked: list[Settings] = []
        self.result, self.reports = result, reports

    def __call__(self, settings: Settings, cluster: Any, out: Path, report: Any) -> dict[str, Any]:
        self.asked.append(settings)
        for step in range(self.reports):
            report({"step": step + 1, "eval/score": float(step)})
        return self.result(settings.train)

    def points(self, *keys: str) -> list[tuple[Any, ...]]:
        return [tuple(getattr(settings.train, key) for key in keys) for settings in self.asked]


@pytest.fixture
def run_sweep(monkeypatch: pytest.MonkeyPatch, prepared: Path) -> Run:
    """run_sweep(trainer, out, {"alpha": "0.2,0.5"}, train={...}, resume=..., **sweep): the result of `sweep`."""
    from ray.tune.search import Searcher

    from prlhf.sweep import training, tuner

    def one_by_one(search: Any, others: Any, out: Path, cluster: Any, progress: Any, board: Any) -> None:
        save = partial(sweep_run._save, out, others, search)
        save()
        stop = tuner.Stop()
        record = tuner.Record(search, save, board, stop)
        points = tuner.Points(search, out, cluster)
        board.begin(search.sweep, search.trials, search.total)
        try:
            while not stop.stop_all() and (config := points.suggest("id")) != Searcher.FINISHED:
                trial = SimpleNamespace(config=config)
                record.on_trial_start(0, [], trial)
                monkeypatch.setattr(
                    tuner.tune, "report", lambda told, trial=trial: record.on_trial_result(0, [], trial, told)
                )
                tuner.in_worker(config)
                record.on_trial_complete(0, [], trial)
        finally:
            record.interrupt()
        if stop.error:
            raise stop.error

    def call(trainer: Any, out: Path, space: dict[str, Any], train: Any = None, **changes: Any) -> dict[str, Any]:
        resume, board = changes.pop("resume", False), changes.pop("board", sweep_run.UNSEEN)
        judge = changes.pop("judge", None)
        config = SweepConfig.model_validate({"space": space, "out": out, "metric": "score"} | changes)
        monkeypatch.setattr(sweep_run, "_run", one_by_one)
        monkeypatch.setattr(training, "run_trial", trainer)
        clusters = {"user_model": "cluster"} if "k" in space else {}
        sections = {"train": {"dataset": str(prepared), "beta": 0.5} | clusters | (train or {})}
        if judge:
            sections["judge"] = {"judge": judge}
        return sweep_run.sweep(config, sections, resume=resume, board=board)

    return call


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The record on disk."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    return read_rows


@pytest.fixture
def trainer() -> type[Trainer]:
    return Trainer
