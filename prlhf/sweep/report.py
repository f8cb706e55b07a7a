"""report.html: the result of a sweep on one page, without other files, with a picture per key and one of all keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prlhf.html import BLUE, GREY, ORANGE, canvas, number, plain, svg, write_page
from prlhf.sweep.search import Search
from prlhf.sweep.space import Axis, Range, Space
from prlhf.sweep.trials import Trial, metrics_of

DONE, BEST, STOPPED = BLUE, ORANGE, GREY
FEW = 12  # the most different values of a range for which means are drawn

TrialValue = tuple[Trial, float]  # a trial and its metric


def write_sweep_report(path: Path, search: Search, best: Trial | None, shared: dict[str, Any], command: str) -> None:
    """Write pictures of each key and of all keys, all trials with their errors, the command, and the shared work.

    All text in the page is escaped.
    """
    sweep, trials, space = search.sweep, search.trials, search.space
    found = trial_values(trials, sweep.metric)
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
        best_value=number(metrics_of(best.result)[sweep.metric]) if best else "",
        shared=shared,
        pictures=[Markup(picture) for picture in pictures],  # matplotlib has escaped their texts
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
        "point": [number(value) for value in trial.point.values()],
        "status": trial.status,
        "value": number(metrics_of(result).get(metric)),
        "steps": result.get("steps", result.get("step", "")),
        "seconds": number(trial.seconds),
        "computed": result.get("reference_computed", ""),
        "cached": result.get("reference_cached", ""),
        "error": trial.error,
        "best": best,
    }


# ---- pictures ----


def trial_values(trials: Sequence[Trial], metric: str) -> list[TrialValue]:
    """The trials that have the metric."""
    return [(trial, metrics_of(trial.result)[metric]) for trial in trials if metric in metrics_of(trial.result)]


def against_key(found: Sequence[TrialValue], key: str, axis: Axis, metric: str, best: Trial | None) -> str:
    """Each trial as a dot over its value of `key`.

    Lines join the means of the trials that are done; whiskers are one standard deviation.
    """
    figure, axes = canvas(4.6, 3.2)
    place = _places(key, axis)
    for trial, value in found:
        color = BEST if trial is best else DONE if trial.status == "done" else STOPPED
        axes.scatter(place(trial), value, s=26, color=color, alpha=0.85, zorder=3, linewidths=0)
    groups: dict[float, list[float]] = {}
    for trial, value in found:
        if trial.status == "done":
            groups.setdefault(place(trial), []).append(value)
    if len(groups) <= FEW and groups:
        where = sorted(groups)
        spread = [_deviation(groups[x]) for x in where]
        axes.errorbar(where, [_mean(groups[x]) for x in where], spread, color=DONE, lw=1.2, capsize=3, zorder=2)
    if isinstance(axis, Range) and axis.log:
        axes.set_xscale("log")
    if isinstance(axis, list) and _named(axis):
        axes.set_xticks(range(len(axis)), [str(value) for value in axis])
    axes.set_xlabel(key)
    axes.set_ylabel(metric)
    plain(axes)
    return svg(figure)


def side_by_side(found: Sequence[TrialValue], space: Space, metric: str, best: Trial | None) -> str:
    """Parallel coordinates: a line per trial through its values, the metric last; lighter is larger."""
    from matplotlib import colormaps

    figure, axes = canvas(min(11.0, 2.2 + 1.7 * len(space)), 3.6)
    names = [*space, metric]
    columns = [[_share(space[key], trial.point[key]) for trial, _ in found] for key in space]
    values = [value for _, value in found]
    low, high = min(values), max(values)
    last = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    for row, (trial, _) in enumerate(found):
        ys = [*(column[row] for column in columns), last[row]]
        style: dict[str, Any] = {"color": colormaps["viridis"](last[row]), "lw": 1.2, "alpha": 0.8}
        if trial is best:
            style = {"color": BEST, "lw": 2.4, "zorder": 4}
        elif trial.status != "done":
            style["ls"] = ":"
        axes.plot(range(len(names)), ys, **style)
    for x, key in enumerate(space):
        for y, text in _ticks(space[key]):
            axes.annotate(text, (x, y), (-3, 0), textcoords="offset points", ha="right", va="center", fontsize=7)
    for y, value in ((0.0, low), (1.0, high)) if high > low else ((0.5, low),):
        axes.annotate(f"{value:.4g}", (len(names) - 1, y), (4, 0), textcoords="offset points", va="center", fontsize=7)
    for x in range(len(names)):
        axes.axvline(x, color="#cccccc", lw=0.8, zorder=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.08, 1.08)
    axes.set_xlim(-0.5, len(names) - 0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    return svg(figure)


def _named(axis: Axis) -> bool:
    """Whether the values are names, which are drawn in the order given."""
    return isinstance(axis, list) and not all(_is_number(value) for value in axis)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(key: str, axis: Axis) -> Any:
    if _named(axis):
        return lambda trial: float(axis.index(trial.point[key]))  # type: ignore[union-attr]
    return lambda trial: float(trial.point[key])


def _share(axis: Axis, value: Any) -> float:
    """The place of a value on its axis, from 0 to 1; the values of a list are equally spaced."""
    if isinstance(axis, list):
        return axis.index(value) / (len(axis) - 1) if len(axis) > 1 else 0.5
    scale = math.log if axis.log else float
    low, high = scale(axis.low), scale(axis.high)
    return (scale(value) - low) / (high - low) if high > low else 0.5


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    values = axis if isinstance(axis, list) else axis.ends
    return [(_share(axis, value), f"{value:g}" if _is_number(value) else str(value)) for value in values]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: list[float]) -> float:
    """The standard deviation; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
