"""The pictures of a run's page: curves over optimizer steps, and users in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from prlhf.dataset import GENERIC
from prlhf.html import BLUE, GREY, ORANGE, canvas, label, plain, svg
from prlhf.runs.plane import Plane

T = TypeVar("T")
POINTS = 400  # of a curve, evenly spaced
NAMED = 40  # users whose names stand beside their points


class Curve(NamedTuple):
    """Values over optimizer steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    color: str = BLUE
    dots: bool = False  # evaluations are drawn as dots; the values of steps as a line through their moving means


def curves(title: str, lines: Sequence[Curve], best: int | None = None) -> str:
    """A picture of `lines` over optimizer steps. `best`: the step whose model was kept."""
    figure, axes = canvas(4.6, 3.2)
    for line in lines:
        if line.dots:
            axes.plot(line.steps, line.values, color=line.color, marker="o", ms=4, lw=1.2, label=line.name)
            continue
        steps, values = thinned(line.steps), thinned(smoothed(line.values))
        axes.plot(thinned(line.steps), thinned(line.values), color=line.color, lw=0.7, alpha=0.25)
        axes.plot(steps, values, color=line.color, lw=1.6, label=line.name)
    if best is not None:
        axes.axvline(best, color="#222222", lw=1, ls="--")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(title)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return svg(figure)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbors, a 25th of all values; fewer at the ends."""
    half = max(len(values) // 50, 1 if len(values) > 10 else 0)
    parts = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def thinned(values: Sequence[T]) -> list[T]:
    """At most POINTS of the values, evenly spaced, with the first and the last."""
    if len(values) <= POINTS:
        return list(values)
    return [values[i * (len(values) - 1) // (POINTS - 1)] for i in range(POINTS)]


def scatter(plane: Plane) -> str:
    """Users as dots, the generic user in orange."""
    figure, axes = canvas(5.2, 4.4)
    places = plane.points.tolist()
    for user, (x, y) in zip(plane.users, places, strict=True):
        generic = user == GENERIC
        axes.scatter(x, y, s=42 if generic else 24, color=ORANGE if generic else BLUE, zorder=4 if generic else 3, lw=0)
        if len(places) <= NAMED:
            axes.annotate(label(user, 20), (x, y), (4, 3), textcoords="offset points", fontsize=7, color="#222222")
    axes.axhline(0, color=GREY, lw=0.6)
    axes.axvline(0, color=GREY, lw=0.6)
    axes.set_xlabel(f"first component ({100 * plane.shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second ({100 * plane.shares[1]:.0f} %)")
    plain(axes)
    return svg(figure)
