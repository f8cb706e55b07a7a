"""report.html: what came out of a sweep on one page that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from prlhf.html import write_page
from prlhf.sweep.pictures import against_key, scored, side_by_side
from prlhf.sweep.search import Search
from prlhf.sweep.trials import Trial, numbers


def write_report(path: Path, search: Search, best: Trial | None, shared: dict[str, Any], command: str) -> None:
    """Write the page of a sweep; all text in it is escaped.

    Pictures of every key, all keys together, a table of all trials with their errors, the command, the account of
    shared work.
    """
    sweep, trials, space = search.sweep, search.trials, search.space
    found = scored(trials, sweep.metric)
    pictures = [against_key(found, key, axis, sweep.metric, best) for key, axis in space.items()] if found else []
    write_page(
        path,
        "prlhf.sweep",
        "report.html.jinja",
        out=str(sweep.out),
        command=command,
        sweep=sweep,
        search=search.name,
        keys=list(space),
        counts=_counts(trials),
        best=best,
        best_value=_number(numbers(best.result)[sweep.metric]) if best else "",
        shared=shared,
        pictures=[Markup(picture) for picture in pictures],  # matplotlib's own, which escapes texts
        parallel=Markup(side_by_side(found, space, sweep.metric, best)) if found else "",
        rows=[_row(trial, sweep.metric, trial is best) for trial in trials],
    )


def _counts(trials: list[Trial]) -> str:
    statuses = [trial.status for trial in trials]
    return f"{len(trials)} trials: " + ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))


def _row(trial: Trial, metric: str, best: bool) -> dict[str, Any]:
    result = trial.result or {}
    return {
        "name": trial.name,
        "point": [_number(value) for value in trial.point.values()],
        "status": trial.status,
        "value": _number(numbers(result).get(metric)),
        "steps": result.get("steps", result.get("step", "")),
        "seconds": _number(trial.seconds),
        "computed": result.get("reference_computed", ""),
        "cached": result.get("reference_cached", ""),
        "error": trial.error,
        "best": best,
    }


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)
