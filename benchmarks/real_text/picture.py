"""One picture of users on real text: how each one's choices are ranked, and what each one is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pictures import COLORS, new_figure, plain_axes, save_figure
from benchmarks.real_text.experiments import Experiment
from benchmarks.real_text.gather import label

Numbers = dict[str, Any]
MARKERS = "os^"
WIDTH = 0.6  # of the place that the arms of one user share
EVERYONE = {"generic": "", "vanilla": "vanilla", "base": "base"}  # whose texts stand beside the users'


def draw_users(experiment: Experiment, found: Numbers, path: Path) -> None:
    """Top: accuracy of each user's held-out comparisons, by arm. Below: each measure of what the shown arm writes."""
    shown = next((arm for arm in experiment.shown if arm in found["written"]), None)
    users = list(experiment.rules)
    figure, panels = new_figure(2, len(experiment.dimensions), 7.5, 5.6)
    for axes in panels[0]:
        axes.remove()
    top = figure.add_subplot(panels[0][0].get_gridspec()[0, :])
    _accuracy(top, users, found)
    for axes, (measure, (name, less, more)) in zip(panels[1], experiment.dimensions.items(), strict=True):
        if shown:
            _measure(axes, users, found["written"], shown, measure, {less, more})
        plain_axes(axes, name, f"written: {label(found['arms'], shown)}" if shown and axes is panels[1][0] else "")
    figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save_figure(figure, path)


def _accuracy(axes: Any, users: Sequence[str], found: Numbers) -> None:
    arms = [arm for arm in found["ranking"] if arm in found["arms"]]
    for number, arm in enumerate(arms):
        accuracies = [found["ranking"][arm]["users"].get(user, {}).get("accuracy", {}).get("own") for user in users]
        shift = WIDTH * ((number + 0.5) / len(arms) - 0.5)
        _draw(axes, accuracies, shift, 100, *look(number), label(found["arms"], arm))
    axes.axhline(50, color="#666666", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(users)), users)
    axes.set_ylim(0, 103)
    plain_axes(axes, "ranking the user's held-out choices", "accuracy, %")


def _measure(axes: Any, users: Sequence[str], written: Numbers, shown: str, measure: str, poles: set[str]) -> None:
    """What the shown arm writes for each user; the two users whose rule the measure is stand out."""
    bars = [(user, written[shown].get(user)) for user in users]
    bars += [(name, written.get(arm or shown, {}).get("generic")) for name, arm in EVERYONE.items()]
    for place, (who, row) in enumerate(bars):
        color = COLORS[1] if who in poles else COLORS[0] if who in users else COLORS[3]
        _draw(axes, [None] * place + [row and row[measure]], 0, 1, color)
    axes.set_xticks(range(len(bars)), [who for who, _ in bars], rotation=60)


def look(number: int) -> tuple[str, str]:
    """Color and marker of an arm: with more arms than colors, other markers."""
    return COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]


def _draw(
    axes: Any,
    means: Sequence[Numbers | None],
    shift: float,
    scale: float,
    color: str,
    marker: str = "o",
    called: str | None = None,
) -> None:
    """Means with intervals at 0, 1, ...; nothing where there is none."""
    known = [(place + shift, mean) for place, mean in enumerate(means) if mean]
    at = [place for place, _ in known]
    values, low, high = ([scale * mean[name] for _, mean in known] for name in ("mean", "low", "high"))
    below = [value - end for value, end in zip(values, low, strict=True)]
    above = [end - value for value, end in zip(values, high, strict=True)]
    axes.errorbar(at, values, yerr=[below, above], fmt=marker, markersize=4, capsize=2.5, color=color, label=called)
