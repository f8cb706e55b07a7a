"""The trials of a sweep: the log in `results.jsonl`, a row per trial, rewritten as a whole whenever one changes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import override

from prlhf.config import SweepConfig
from prlhf.dataset import read_manifest
from prlhf.errors import PrlhfError, nearest
from prlhf.files import atomic_file
from prlhf.sweep.settings import Settings, identity
from prlhf.sweep.space import Point

RESULTS = "results.jsonl"
RECIPE = "recipe.yaml"  # of the sweep, which --resume continues
REFERENCE = ("reference_computed", "reference_cached")  # in a trial's result: pairs that it computed, or found
FINISHED = ("done", "stopped")  # what --resume does not run again
_HASH = re.compile(r"^# data: ([0-9a-f]{64})$", re.MULTILINE)


@dataclass
class Trial:
    """One point of the space, and its result. Only a killed sweep leaves `running` behind."""

    name: Annotated[str, Field(pattern=r"^trial-\d{3,}$")]  # its folder in that of the sweep
    point: Point
    config: dict[str, Any]  # all settings except where it is written; equal for equal trials
    status: Literal["planned", "running", "done", "stopped", "failed", "interrupted"] = "planned"
    result: dict[str, Any] | None = None  # at its end, or when it was stopped
    error: str | None = None  # one line
    traceback: str | None = None  # of errors that are bugs
    seconds: float | None = None
    history: list[tuple[int, float]] = field(default_factory=list)  # (step, metric) of each evaluation

    @property
    def finished(self) -> bool:
        """Whether --resume leaves it as it is."""
        return self.status in FINISHED


_TRIAL = TypeAdapter(Trial)


def new_trial(number: int, point: Point, settings: Settings) -> Trial:
    """A planned trial. Its point has the validated values: `1e-4` is text to YAML."""
    config = identity(settings)
    return Trial(f"trial-{number:03d}", {key: config[key] for key in point}, config)


def next_number(known: list[Trial]) -> int:
    """The number of the next trial, from 0."""
    return 1 + max((int(trial.name.rpartition("-")[2]) for trial in known), default=-1)


def planned_trials(found: list[Settings], points: list[Point], known: list[Trial]) -> list[Trial]:
    """A trial per point: the known one with the same settings, or a new one with the next free number."""
    trials = []
    number = next_number(known)
    for settings, point in zip(found, points, strict=True):
        same = next((trial for trial in known if trial.config == identity(settings)), None)
        if same is None:
            same, number = new_trial(number, point, settings), number + 1
        same.point = {key: same.config[key] for key in point}  # it may be from a space with other keys
        trials.append(same)
    return trials


# ---- the log ----


def read_trials(out: Path) -> list[Trial]:
    """The trials in the log of the sweep in `out`; empty if it is new. Raises PrlhfError for a damaged row."""
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
    """Write the log, a row per trial."""
    with atomic_file(out / RESULTS) as beside:
        beside.write_bytes(b"".join(_TRIAL.dump_json(trial) + b"\n" for trial in trials))


def write_table(path: Path, trials: list[Trial]) -> None:
    """Write a Parquet table, a row per trial: settings as `config/KEY` (as in Ray Tune), metrics as `result/NAME`."""
    with atomic_file(path) as beside:
        pq.write_table(pa.table({name: pa.array(values) for name, values in _columns(trials).items()}), beside)


def _columns(trials: list[Trial]) -> dict[str, list[Any]]:
    metrics = {name: None for trial in trials for name in metrics_of(trial.result) if name not in REFERENCE}
    return {
        "trial": [trial.name for trial in trials],
        "status": [trial.status for trial in trials],
        "error": [trial.error for trial in trials],
        "seconds": [trial.seconds for trial in trials],
        **{name: [(trial.result or {}).get(name) for trial in trials] for name in REFERENCE},
        **{f"config/{key}": [trial.point[key] for trial in trials] for key in trials[0].point},
        **{f"result/{name}": [metrics_of(trial.result).get(name) for trial in trials] for name in metrics},
    }


# ---- metrics ----


def metrics_of(result: dict[str, Any] | None) -> dict[str, float]:
    """The finite numbers in a result, which can be compared between trials."""
    return {
        name: float(value)
        for name, value in (result or {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def best_trial(trials: list[Trial], metric: str, mode: Literal["max", "min"]) -> Trial | None:
    """The best of the trials that are done, the first one if several are equal; None if none has the metric."""
    done = [trial for trial in trials if trial.status == "done" and metric in metrics_of(trial.result)]
    sign = 1 if mode == "max" else -1
    return max(done, key=lambda trial: sign * metrics_of(trial.result)[metric], default=None)


def missing_metric(trial: Trial, metric: str) -> PrlhfError | None:
    """The error if a trial is done without the metric; null (not a number) is a bad value, and not an error."""
    if trial.status != "done" or metric in metrics_of(trial.result) or (trial.result or {}).get(metric, "") is None:
        return None
    return no_metric(trial.name, metric, trial.result or {})


def no_metric(where: str, metric: str, result: dict[str, Any]) -> PrlhfError:
    """The error for a result without the metric of the sweep."""
    return PrlhfError(f"{where} has no metric '{metric}'", nearest(metric, metrics_of(result)))


# ---- data that moved ----


def relocate(known: list[Trial], out: Path, folders: list[str]) -> None:
    """Change the `known` trials of the sweep in `out` so that their data are in `folders`, where they are found.

    Data are recognized by their content. Raises PrlhfError if a folder has other content than when its trials began.
    """
    holds = {folder: str(read_manifest(Path(folder))["content_hash"]) for folder in folders}
    places: dict[str, str] = {}
    for trial in known:
        before, trained_on = str(trial.config.get("dataset")), _content_of(out / trial.name)
        if trained_on is None or holds.get(before) == trained_on:
            continue
        if before in holds:
            raise PrlhfError(f"the data in {before} changed since {out} was started", "choose another --out")
        places[before] = next((folder for folder, content in holds.items() if content == trained_on), before)
    for trial in known:
        for values in (trial.config, trial.point):
            if "dataset" in values:
                values["dataset"] = places.get(str(values["dataset"]), values["dataset"])


def _content_of(run: Path) -> str | None:
    """The content hash of the data that the run was trained on; None if it has not begun."""
    try:
        found = _HASH.search((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None


# ---- display ----


class TrialDisplay(Protocol):
    """Shows the trials while they run."""

    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        """Show a sweep of `total` trials, of which `trials` are known."""

    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        """Show that `trial` started, was evaluated or ended."""

    def end(self) -> None:
        """Close the display."""


class NoDisplay(TrialDisplay):
    """Shows nothing."""

    @override
    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        pass

    @override
    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        pass

    @override
    def end(self) -> None:
        pass


NO_DISPLAY: TrialDisplay = NoDisplay()
