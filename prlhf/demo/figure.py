"""Figure 3 of the paper (section 5.1): words per response, one bar per user and per policy without users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file
from prlhf.results import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which is distinct for all types of color vision, and in print by lightness.
COLORS: dict[Kind, str] = {
    "user": "#0072B2",
    "minority": "#E69F00",
    "generic": "#56B4E9",
    "vanilla": "#009E73",
    "base": "#999999",
}
LEGEND: dict[Kind, str] = {
    "user": "majority user",
    "minority": "minority user",
    "generic": "generic user",
    "vanilla": "vanilla DPO",
    "base": "base model",
}
INK = "#333333"  # whiskers and numbers
MANY_BARS = 24  # with more bars, labels are vertical and values are omitted


@dataclass(frozen=True)
class LengthBar:
    """One bar: mean words per response and the standard error of that mean (0 draws no whisker)."""

    label: str
    kind: Kind
    mean: float
    standard_error: float


def draw_lengths(groups: list[LengthBar], path: Path) -> None:
    """Draw the bars in the given order and write a PNG to `path`.

    Raises:
        PrlhfError: there are no bars, or the file cannot be written.
    """
    if not groups:
        raise PrlhfError("there is nothing to draw: no bars", "generate responses first")
    # An own canvas needs no display and does not touch the global state of pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 0.6 if len(groups) <= MANY_BARS else 0.3  # inches per bar
    figure = Figure(figsize=(min(24.0, max(5.0, 1.2 + width * len(groups))), 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_bars(axes, groups)
    _label(axes, groups)
    figure.legend(loc="outside upper center", ncols=len(LEGEND), frameon=False, fontsize=8.5)
    with atomic_file(path) as beside:
        figure.savefig(beside, format="png")  # the temporary name does not end in .png


def _draw_bars(axes: Axes, groups: list[LengthBar]) -> None:
    for kind, name in _kinds(groups).items():
        places = [x for x, bar in enumerate(groups) if bar.kind == kind]
        axes.bar(places, [groups[x].mean for x in places], width=0.72, color=COLORS[kind], label=name, zorder=2)
    for x, bar in enumerate(groups):
        if bar.standard_error > 0:
            axes.errorbar(x, bar.mean, bar.standard_error, ecolor=INK, elinewidth=1.1, capsize=2.5, zorder=3)
        if len(groups) <= MANY_BARS:  # the number also shows a bar of height zero
            top, text = (x, bar.mean + bar.standard_error), f"{bar.mean:.1f}"
            axes.annotate(text, top, (0, 3), textcoords="offset points", ha="center", fontsize=7.5, color=INK)


def _label(axes: Axes, groups: list[LengthBar]) -> None:
    axes.set_xticks(range(len(groups)), [bar.label for bar in groups], fontsize=8)
    if len(groups) > MANY_BARS:
        axes.tick_params(axis="x", labelrotation=90)
    elif max(len(bar.label) for bar in groups) > 8:
        for tick in axes.get_xticklabels():
            tick.set(rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.7, len(groups) - 0.3)
    axes.set_ylim(0, 1.12 * max(1.0, *(bar.mean + bar.standard_error for bar in groups)))
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.set_ylabel("words per response (mean ± SE)", fontsize=9)
    axes.set_xlabel("response written for", fontsize=9)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _kinds(groups: list[LengthBar]) -> dict[Kind, str]:
    """The kinds present and their names, in the order of the legend; without a minority, users are just users."""
    present = {bar.kind for bar in groups}
    names = LEGEND if "minority" in present else LEGEND | {"user": "user"}
    return {kind: name for kind, name in names.items() if kind in present}
