"""What a sweep leaves: the table, the best trial's recipe, the report, and the account of work that was shared."""

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
from prlhf.sweep.trials import Trial, best_of, numbers, write_table

_COUNTS = TypeAdapter(dict[str, int])
TABLE, BEST, REPORT, SHARED = "results.parquet", "best.yaml", "report.html", "shared.json"


def add_shared(out: Path, counts: dict[str, int]) -> None:
    """Add to the account of what was done once for all trials, in this run of the sweep and in earlier ones."""
    known = read_shared(out)
    with atomic_file(out / SHARED) as beside:
        beside.write_text(json.dumps({k: known.get(k, 0) + counts.get(k, 0) for k in {**known, **counts}}) + "\n")


def read_shared(out: Path) -> dict[str, int]:
    """The account of the work that trials shared; empty if there is none."""
    path = out / SHARED
    try:
        return _COUNTS.validate_python(json_value(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "remove it: it only counts shared work") from error


def account(trials: list[Trial], shared: dict[str, int]) -> dict[str, Any]:
    """How much work on the reference the task did before the trials, and the trials themselves.

    The trials should find all of theirs in the cache. Counts are of (prompt, response) pairs; None where no trial said.
    """

    def total(name: str) -> int | None:
        said = [trial.result[name] for trial in trials if trial.result and name in trial.result]
        return sum(said) if said else None

    return {
        "data_sets_prepared": shared.get("data_sets_prepared", 0),
        "before_trials": {"computed": shared.get("computed", 0), "cached": shared.get("cached", 0)},
        "in_trials": {"computed": total("reference_computed"), "cached": total("reference_cached")},
        "base_responses": shared.get("base_responses", 0),
    }


def conclude(search: Search, out: Path, command: str) -> dict[str, Any]:
    """Write table, report and the best trial's recipe, and say what came out.

    Raises PrlhfError where no trial has the metric; table and report are there then, too.
    """
    trials, sweep = search.trials, search.sweep
    best = best_of(trials, sweep.metric, sweep.mode)
    shared = account(trials, read_shared(out))
    write_table(out / TABLE, trials)
    from prlhf.sweep.report import write_report  # brings matplotlib

    write_report(out / REPORT, search, best, shared, command)
    if best is None:
        errors = [trial.error for trial in trials if trial.error]
        why = f"the first error: {errors[0]}" if errors else f"'{sweep.metric}' was not a number in any"
        raise PrlhfError(f"none of {len(trials)} trials has a result; {why}", "mend it and go on with --resume")
    value = numbers(best.result)[sweep.metric]
    _write_recipe(out / BEST, search, best, f"{sweep.metric} = {value:g}")
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
    """The metric at the end, or where the trial was stopped."""
    return numbers(trial.result).get(metric)


def _write_recipe(path: Path, search: Search, best: Trial, outcome: str) -> None:
    """What was given, not every default: the recipe stays readable, and `out` stays the reader's choice."""
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
