"""The report's pictures, as SVG: the metric against one key, and all keys side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from prlhf.html import BLUE, GREY, ORANGE, canvas, plain, svg
from prlhf.sweep.space import Axis, Range, Space
from prlhf.sweep.trials import Trial, numbers

DONE, BEST, STOPPED = BLUE, ORANGE, GREY
FEW = 12  # values of a range for which means are drawn

Scored = tuple[Trial, float]


def scored(trials: Sequence[Trial], metric: str) -> list[Scored]:
    """Trials that have the metric, with it."""
    return [(trial, numbers(trial.result)[metric]) for trial in trials if metric in numbers(trial.result)]


def against_key(found: Sequence[Scored], key: str, axis: Axis, metric: str, best: Trial | None) -> str:
    """Every trial as a dot over its value of `key`.

    Lines join the means of the trials that ran to their end, and whiskers are their standard deviation.
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


def side_by_side(found: Sequence[Scored], space: Space, metric: str, best: Trial | None) -> str:
    """Parallel coordinates: a line per trial through its values, the metric last; the lighter, the better."""
    from matplotlib import colormaps

    figure, axes = canvas(min(11.0, 2.2 + 1.7 * len(space)), 3.6)
    names = [*space, metric]
    columns = [[_share(space[key], trial.point[key]) for trial, _ in found] for key in space]
    values = [value for _, value in found]
    low, high = min(values), max(values)
    last = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    for number, (trial, _) in enumerate(found):
        ys = [*(column[number] for column in columns), last[number]]
        style: dict[str, Any] = {"color": colormaps["viridis"](last[number]), "lw": 1.2, "alpha": 0.8}
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
    """Whether values are names, which stand beside each other in the order given."""
    return isinstance(axis, list) and not all(_is_number(value) for value in axis)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(key: str, axis: Axis) -> Any:
    if _named(axis):
        return lambda trial: float(axis.index(trial.point[key]))  # type: ignore[union-attr]
    return lambda trial: float(trial.point[key])


def _share(axis: Axis, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1; a list's values stand equally far apart."""
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
