"""`prlhf sweep` in one process: every point of the grid, one after the other."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic_core import from_json, to_json

from prlhf.atomic import atomic_file
from prlhf.config import TrainConfig
from prlhf.errors import Interrupted, PrlhfError, nearest
from prlhf.progress import SILENT, Progress
from prlhf.sweep.space import Space, configs, grid
from prlhf.sweep.trials import Trial, numbers, plan, read_trials, write_table, write_trials

Mode = Literal["max", "min"]
RunTrial = Callable[[TrainConfig], dict[str, Any]]  # trains into `config.out`, returns metrics by name
SIGN: dict[str, int] = {"max": 1, "min": -1}
TABLE, BEST = "results.parquet", "best.yaml"


def run_grid(
    base: Mapping[str, Any],
    space: Space,
    out: Path,
    run_trial: RunTrial,
    metric: str,
    mode: Mode = "max",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Run what is not yet done of the grid into `out`/trial-000 and on; returns the best trial and all others.

    A trial that fails is recorded and the next one starts; a rerun takes up failed and interrupted trials and
    skips finished ones. `run_trial` is to show no bar of its own: `progress` counts trials.
    """
    if mode not in SIGN:
        raise PrlhfError(f"mode '{mode}' is not known", nearest(mode, SIGN))
    points = grid(space)
    checked = configs(base, points)
    known = read_trials(out)
    trials = plan(checked, points, known)
    for trial in trials:
        _check_metric(trial, metric)
    record = known + [trial for trial in trials if trial not in known]
    todo = [(trial, config) for trial, config in zip(trials, checked, strict=True) if trial.status != "done"]
    progress.start("sweep", len(trials))
    progress.advance(len(trials) - len(todo))
    try:
        for trial, config in todo:
            _run(
                trial,
                config.model_copy(update={"out": out / trial.name}),
                run_trial,
                partial(write_trials, out, record),
            )
            _check_metric(trial, metric)
            progress.advance()
            if trial.error:
                progress.note(f"{trial.name} failed: {trial.error}")
    finally:
        progress.finish()
    return _conclude(base, trials, out, metric, mode) | {"skipped": len(trials) - len(todo)}


def _run(trial: Trial, config: TrainConfig, run_trial: RunTrial, save: Callable[[], None]) -> None:
    """Run one trial, saving the record before and after, whatever comes of it."""
    trial.status, trial.result, trial.error, trial.traceback, trial.seconds = "running", None, None, None, None
    save()
    start = time.monotonic()
    try:
        trial.result = _as_json(run_trial(config))
        trial.status = "done"
    except (KeyboardInterrupt, Interrupted) as error:
        trial.status = "interrupted"
        raise Interrupted(f"stopped in {trial.name}; run the same command again to go on") from error
    except PrlhfError as error:
        trial.status, trial.error = "failed", " ".join(str(error).split())
    except Exception as error:  # a bug of one trial is not to cost the night's other trials
        trial.status, trial.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
        trial.traceback = traceback.format_exc()
    finally:
        trial.seconds = round(time.monotonic() - start, 3)
        save()


def _as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result as it will be read back, so that resumed and uninterrupted sweeps report the same."""
    plain = to_json(
        result, inf_nan_mode="null", fallback=lambda value: value.item() if hasattr(value, "item") else str(value)
    )
    return from_json(plain)  # type: ignore[no-any-return]


def _check_metric(trial: Trial, metric: str) -> None:
    """A finished trial is to have the metric; null (not a number) is a bad trial, not a bad name."""
    if trial.result is None or metric in numbers(trial.result) or trial.result.get(metric, "") is None:
        return
    raise PrlhfError(f"{trial.name} has no metric '{metric}'", nearest(metric, numbers(trial.result)))


def _conclude(base: Mapping[str, Any], trials: list[Trial], out: Path, metric: str, mode: Mode) -> dict[str, Any]:
    """Write the table and the best trial's recipe, and say what came out."""
    write_table(out / TABLE, trials)
    best = _best(trials, metric, mode)
    value = numbers(best.result or {})[metric]
    _write_recipe(out / BEST, base, best, f"{metric} = {value:g}")
    return {
        "metric": metric,
        "mode": mode,
        "out": str(out),
        "done": sum(trial.status == "done" for trial in trials),
        "failed": sum(trial.status == "failed" for trial in trials),
        "best": {"trial": best.name, "point": best.point, "value": value},
        "trials": [
            {"trial": t.name, "point": t.point, "status": t.status, "error": t.error, "value": _value(t, metric)}
            for t in trials
        ],
    }


def _best(trials: list[Trial], metric: str, mode: Mode) -> Trial:
    scores = [(SIGN[mode] * value, trial) for trial in trials if (value := _value(trial, metric)) is not None]
    if not scores:
        errors = [trial.error for trial in trials if trial.error]
        why = f"the first error: {errors[0]}" if errors else f"'{metric}' was not a number in any"
        raise PrlhfError(f"none of {len(trials)} trials has a result; {why}", "mend it and run the sweep again")
    return max(scores, key=lambda score: score[0])[1]  # the first of equals


def _value(trial: Trial, metric: str) -> float | None:
    return numbers(trial.result or {}).get(metric)


def _write_recipe(path: Path, base: Mapping[str, Any], best: Trial, outcome: str) -> None:
    """What was given, not every default: the recipe stays readable, and `out` stays the reader's choice."""
    given = {key: best.config[key] for key in (*base, *best.point) if key != "out" and best.config[key] is not None}
    header = f"# prlhf train --recipe {path}\n# {best.name} of the sweep: {outcome}\n"
    with atomic_file(path) as beside:
        beside.write_text(header + yaml.safe_dump({"train": given}, sort_keys=False), encoding="utf-8")
