"""The record of a sweep's trials: `results.jsonl`, one row per trial, rewritten whole whenever one changes."""

from __future__ import annotations

import math
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prlhf.errors import PrlhfError, nearest
from prlhf.files import atomic_file
from prlhf.sweep.settings import Settings, identity
from prlhf.sweep.space import Point

RESULTS = "results.jsonl"
RECIPE = "recipe.yaml"  # of the sweep: what --resume goes on with
SHARED = ("reference_computed", "reference_cached")  # of a trial's results: work that it had to do, and had not
FINISHED = ("done", "stopped")  # what --resume does not run again


@dataclass
class Trial:
    """One point of the space. `running` outlives only a killed sweep; all but `FINISHED` are run again."""

    name: Annotated[str, Field(pattern=r"^trial-\d{3,}$")]  # its folder in the sweep's
    point: Point
    config: dict[str, Any]  # all settings but where it is written: what makes two trials the same
    status: Literal["planned", "running", "done", "stopped", "failed", "interrupted"] = "planned"
    result: dict[str, Any] | None = None  # at the end, or when it was stopped
    error: str | None = None  # one line
    traceback: str | None = None  # of errors that are bugs
    seconds: float | None = None
    history: list[tuple[int, float]] = field(default_factory=list)  # step and metric, where they were reported

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return self.status in FINISHED


_TRIAL = TypeAdapter(Trial)


def new_trial(number: int, point: Point, settings: Settings) -> Trial:
    """A planned trial; its point is recorded as validated: `1e-4` is text to YAML."""
    config = identity(settings)
    return Trial(f"trial-{number:03d}", {key: config[key] for key in point}, config)


def next_number(known: list[Trial]) -> int:
    """The number of the next trial, from 0."""
    return 1 + max((int(trial.name.rpartition("-")[2]) for trial in known), default=-1)


def plan(found: list[Settings], points: list[Point], known: list[Trial]) -> list[Trial]:
    """A trial per point: the known one of the same settings, or a new one with the next free number."""
    trials = []
    number = next_number(known)
    for settings, point in zip(found, points, strict=True):
        same = next((trial for trial in known if trial.config == identity(settings)), None)
        if same is None:
            same, number = new_trial(number, point, settings), number + 1
        same.point = {key: same.config[key] for key in point}  # it may come from a space of other keys
        trials.append(same)
    return trials


def read_trials(out: Path) -> list[Trial]:
    """The trials that earlier runs left in `out`; none where it is new."""
    path = out / RESULTS
    if not path.is_file():
        return []
    trials = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            trials.append(_TRIAL.validate_json(line))
            _check_point(trials[-1])
        except ValueError as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise PrlhfError(
                f"{path}:{number} is not a trial: {why}", "remove that line to run its trial again"
            ) from error
    return trials


def _check_point(trial: Trial) -> None:
    for key, value in trial.point.items():
        if key not in trial.config or trial.config[key] != value:
            raise ValueError(f"its point has {key} = {value!r}, its config {trial.config.get(key)!r}")


def write_trials(out: Path, trials: list[Trial]) -> None:
    """Write the record of all trials, a line for each."""
    with atomic_file(out / RESULTS) as beside:
        beside.write_bytes(b"".join(_TRIAL.dump_json(trial) + b"\n" for trial in trials))


def write_table(path: Path, trials: list[Trial]) -> None:
    """A row per trial; its settings as `config/KEY` (Ray Tune's naming), the numbers of its result as `result/NAME`."""
    with atomic_file(path) as beside:
        pq.write_table(pa.table({name: pa.array(values) for name, values in _columns(trials).items()}), beside)


def _columns(trials: list[Trial]) -> dict[str, list[Any]]:
    metrics = {name: None for trial in trials for name in numbers(trial.result) if name not in SHARED}
    return {
        "trial": [trial.name for trial in trials],
        "status": [trial.status for trial in trials],
        "error": [trial.error for trial in trials],
        "seconds": [trial.seconds for trial in trials],
        **{name: [(trial.result or {}).get(name) for trial in trials] for name in SHARED},
        **{f"config/{key}": [trial.point[key] for trial in trials] for key in trials[0].point},
        **{f"result/{name}": [numbers(trial.result).get(name) for trial in trials] for name in metrics},
    }


def numbers(result: dict[str, Any] | None) -> dict[str, float]:
    """The metrics of a result: what can be compared between trials."""
    return {
        name: float(value)
        for name, value in (result or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def best_of(trials: list[Trial], metric: str, mode: Literal["max", "min"]) -> Trial | None:
    """The first of the best among those that ran to their end; None where none has the metric."""
    done = [trial for trial in trials if trial.status == "done" and metric in numbers(trial.result)]
    sign = 1 if mode == "max" else -1
    return max(done, key=lambda trial: sign * numbers(trial.result)[metric], default=None)


def missing_metric(trial: Trial, metric: str) -> PrlhfError | None:
    """A trial at its end is to have the metric; null (not a number) is a bad trial, not a bad name."""
    if trial.status != "done" or metric in numbers(trial.result) or (trial.result or {}).get(metric, "") is None:
        return None
    return no_metric(trial.name, metric, trial.result or {})


def no_metric(where: str, metric: str, result: dict[str, Any]) -> PrlhfError:
    """The error of a result without the metric that the sweep is about."""
    return PrlhfError(f"{where} has no metric '{metric}'", nearest(metric, numbers(result)))
