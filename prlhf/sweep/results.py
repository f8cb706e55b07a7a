"""The results of a sweep: the table, the best trial's recipe, the report, and the count of shared work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file
from prlhf.parse import json_value
from prlhf.sweep.search import Search
from prlhf.sweep.trials import Trial, best_trial, metrics_of, write_table

_COUNTS = TypeAdapter(dict[str, int])
TABLE, BEST_RECIPE, REPORT, SHARED = "results.parquet", "best.yaml", "report.html", "shared.json"


def add_shared_work(out: Path, counts: dict[str, int]) -> None:
    """Add `counts` to those of earlier runs of the sweep: work that was done once for all trials."""
    known = read_shared_work(out)
    with atomic_file(out / SHARED) as beside:
        beside.write_text(json.dumps({k: known.get(k, 0) + counts.get(k, 0) for k in {**known, **counts}}) + "\n")


def read_shared_work(out: Path) -> dict[str, int]:
    """The counts of shared work; empty if there are none. Raises PrlhfError if the file is damaged."""
    path = out / SHARED
    try:
        return _COUNTS.validate_python(json_value(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "remove it: it only counts shared work") from error


def shared_work(trials: list[Trial], shared: dict[str, int]) -> dict[str, Any]:
    """The work on the reference, in (prompt, response) pairs: before the trials, and in the trials themselves.

    The trials should find all of their pairs in the cache. A count is None if no trial reports it.
    """

    def total(name: str) -> int | None:
        counts = [trial.result[name] for trial in trials if trial.result and name in trial.result]
        return sum(counts) if counts else None

    return {
        "data_sets_prepared": shared.get("data_sets_prepared", 0),
        "before_trials": {"computed": shared.get("computed", 0), "cached": shared.get("cached", 0)},
        "in_trials": {"computed": total("reference_computed"), "cached": total("reference_cached")},
        "base_responses": shared.get("base_responses", 0),
    }


def conclude(search: Search, out: Path, command: str) -> dict[str, Any]:
    """Write the table, the report and the best trial's recipe; returns the result of the sweep.

    Raises PrlhfError if no trial has the metric, after the table and the report were written.
    """
    trials, sweep = search.trials, search.sweep
    best = best_trial(trials, sweep.metric, sweep.mode)
    shared = shared_work(trials, read_shared_work(out))
    write_table(out / TABLE, trials)
    from prlhf.sweep.report import write_sweep_report  # imports matplotlib

    write_sweep_report(out / REPORT, search, best, shared, command)
    if best is None:
        errors = [trial.error for trial in trials if trial.error]
        why = f"the first error: {errors[0]}" if errors else f"'{sweep.metric}' was not a number in any"
        raise PrlhfError(
            f"none of {len(trials)} trials has a result; {why}", "fix the cause and continue with --resume"
        )
    value = metrics_of(best.result)[sweep.metric]
    _write_recipe(out / BEST_RECIPE, search, best, f"{sweep.metric} = {value:g}")
    return {
        "metric": sweep.metric,
        "mode": sweep.mode,
        "out": str(sweep.out),
        **{status: sum(trial.status == status for trial in trials) for status in ("done", "stopped", "failed")},
        "best": {"trial": best.name, "point": best.point, "value": value},
        "shared": shared,
        "trials": [
            {
                "trial": t.name,
                "point": t.point,
                "status": t.status,
                "error": t.error,
                "value": value_of(t, sweep.metric),
            }
            for t in trials
        ],
    }


def value_of(trial: Trial, metric: str) -> float | None:
    """The metric at the end of the trial, or when it was stopped."""
    return metrics_of(trial.result).get(metric)


def _write_recipe(path: Path, search: Search, best: Trial, outcome: str) -> None:
    """Write a recipe with what was given, without the defaults and without `out`."""
    stages = {stage: dict(search.sections.get(stage, {})) for stage in ("train", "generate", "judge")}
    for key in best.point:
        stage, _, bare = key.rpartition(".")
        stages[stage or "train"][bare] = best.config[key]
    stages["train"].pop("out", None)
    given = {stage: {k: v for k, v in values.items() if v is not None} for stage, values in stages.items()}
    header = f"# prlhf train --recipe {path}\n# {best.name} of the sweep: {outcome}\n"
    with atomic_file(path) as beside:
        text = yaml.safe_dump({stage: values for stage, values in given.items() if values}, sort_keys=False)
        beside.write_text(header + text, encoding="utf-8")
