"""A training run as its folder tells it, finished or not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.files import is_in_use
from prlhf.folders import what_is, words_of
from prlhf.model.per_user import is_per_user, user_runs
from prlhf.results import RunSummary
from prlhf.train import metrics
from prlhf.train.run_folder import read_results, saved_config
from prlhf.train.samples import FILE as SAMPLES


@dataclass(frozen=True)
class StoredRun:
    """The run in `folder`. Its files are read when they are asked for; a damaged one raises PrlhfError."""

    folder: Path
    config: TrainConfig

    @property
    def per_user(self) -> bool:
        """Whether it is a folder with a run for each user."""
        return is_per_user(self.folder)

    @property
    def state(self) -> str:
        """`finished`, `running`, or `stopped`: it can be continued."""
        finished = self.per_user or what_is(self.folder / "model") == "model"
        if finished and (self.folder / "results.json").is_file():
            return "finished"
        at_work = any(folder.is_dir() and is_in_use(folder) for folder in [self.folder, *user_runs(self.folder)])
        return "running" if at_work else "stopped"

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return metrics.read_checked(self.folder / "metrics.jsonl")

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """samples.jsonl."""
        return metrics.read_checked(self.folder / SAMPLES)

    @cached_property
    def results(self) -> dict[str, Any]:
        """results.json; empty if the run is not finished."""
        return read_results(self.folder) if (self.folder / "results.json").is_file() else {}

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of the log that are of optimizer steps."""
        return [row for row in self.log if "loss" in row]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the log that are of evaluations."""
        return [row for row in self.log if isinstance(row.get("eval"), dict)]

    @property
    def scores(self) -> dict[str, Any]:
        """The evaluation that counts: that of the final model, or the last one so far; empty if there is none."""
        last = self.evaluations[-1]["eval"] if self.evaluations else {}
        return self.results.get("eval") or last

    def summary(self) -> RunSummary:
        """What a table of runs has of it."""
        best, steps = self.results.get("best") or {}, self.steps
        return RunSummary(
            run=self.folder,
            name=self.folder.resolve().name,
            state=self.state,
            objective=self.config.objective,
            per_user=self.per_user,
            dataset=self.config.dataset,
            model=self.config.model,
            user_model=None if self.config.objective == "sft" or self.per_user else self.config.user_model,
            steps=self.results.get("steps", steps[-1]["step"] if steps else 0),
            best_step=best.get("step"),
            scores={name: value for name, value in self.scores.items() if isinstance(value, float)},
        )


def read_run(folder: Path) -> StoredRun:
    """The run in `folder`. Raises PrlhfError if it holds none, or one whose settings cannot be read."""
    if not folder.exists():
        raise PrlhfError(f"no folder at {folder}", "give the folder of a run")
    if what_is(folder) != "run":
        raise PrlhfError(f"{folder} is {words_of(folder)}, not a training run", "give the folder of a run")
    return StoredRun(folder, saved_config(folder))


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which run-9 comes before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
