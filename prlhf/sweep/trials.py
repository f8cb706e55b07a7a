"""The record of a sweep's trials: `results.jsonl`, one row per trial, rewritten whole before and after each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prlhf.atomic import atomic_file
from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.sweep.space import Point

RESULTS = "results.jsonl"


@dataclass
class Trial:
    """One point of the grid. `running` outlives only a killed sweep; everything but `done` is run again."""

    name: Annotated[str, Field(pattern=r"^trial-\d{3,}$")]  # its folder in the sweep's
    point: Point
    config: dict[str, Any]  # all settings but `out`: what makes two trials the same
    status: Literal["planned", "running", "done", "failed", "interrupted"] = "planned"
    result: dict[str, Any] | None = None
    error: str | None = None  # one line
    traceback: str | None = None  # of errors that are bugs
    seconds: float | None = None


_TRIAL = TypeAdapter(Trial)


def identity(config: TrainConfig) -> dict[str, Any]:
    """All settings but where the run is written, as JSON has them."""
    return config.model_dump(mode="json", exclude={"out"})


def plan(configs: list[TrainConfig], points: list[Point], known: list[Trial]) -> list[Trial]:
    """A trial per point: the known one of the same settings, or a new one with the next free number."""
    trials = []
    number = 1 + max((int(trial.name.rpartition("-")[2]) for trial in known), default=-1)
    for config, point in zip(configs, points, strict=True):
        same = next((trial for trial in known if trial.config == identity(config)), None)
        if same is None:
            values = {key: identity(config)[key] for key in point}  # as validated: `1e-4` is text to YAML
            same, number = Trial(f"trial-{number:03d}", values, identity(config)), number + 1
        trials.append(same)
    return trials


def read_trials(out: Path) -> list[Trial]:
    """The trials that earlier runs left in `out`; none where it is new."""
    path = out / RESULTS
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise PrlhfError(f"{out} exists and is no sweep", "choose another --out")
        return []
    trials = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            trials.append(_TRIAL.validate_json(line))
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise PrlhfError(
                f"{path}:{number} is no trial: {why}", "remove that line to run its trial again"
            ) from error
    return trials


def write_trials(out: Path, trials: list[Trial]) -> None:
    with atomic_file(out / RESULTS) as beside:
        beside.write_bytes(b"".join(_TRIAL.dump_json(trial) + b"\n" for trial in trials))


def write_table(path: Path, trials: list[Trial]) -> None:
    """A row per trial; its settings as `config/KEY` (Ray Tune's naming), the numbers of its result as `result/NAME`."""
    with atomic_file(path) as beside:
        pq.write_table(pa.table({name: pa.array(values) for name, values in _columns(trials).items()}), beside)


def _columns(trials: list[Trial]) -> dict[str, list[Any]]:
    metrics = {name: None for trial in trials for name in numbers(trial.result or {})}
    return {
        "trial": [trial.name for trial in trials],
        "status": [trial.status for trial in trials],
        "error": [trial.error for trial in trials],
        "seconds": [trial.seconds for trial in trials],
        **{f"config/{key}": [trial.point[key] for trial in trials] for key in trials[0].point},
        **{f"result/{name}": [numbers(trial.result or {}).get(name) for trial in trials] for name in metrics},
    }


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result: what can be compared between trials."""
    return {
        name: float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
