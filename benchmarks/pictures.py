"""The pictures of docs/RESULTS.md. Whiskers are 95 % intervals; in Figure 3 standard errors, as in the paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prlhf.demo.figure import LengthBar, draw_lengths
from prlhf.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = dict[str, Any]
# Okabe and Ito's palette, as in prlhf/demo/figure.py
COLORS = ("#0072B2", "#E69F00", "#009E73", "#999999", "#CC79A7", "#56B4E9")


def draw_all(numbers: Numbers, folder: Path) -> None:
    """Draw a PNG for each part of `numbers` that is present."""
    folder.mkdir(parents=True, exist_ok=True)
    if "figure3" in numbers:
        bars = [
            LengthBar(r["label"], r["kind"], r["words"]["mean"], r["words"]["standard_error"])
            for r in numbers["figure3"]["rows"]
        ]
        draw_lengths(bars, folder / "figure3.png")
    if "table1" in numbers:
        _profiles(numbers["table1"]["win_rates"], folder / "table1.png")
    if "table2" in numbers:
        _crowd(numbers["table2"], folder / "table2.png")
    if "table2_paper" in numbers:
        _crowd(numbers["table2_paper"], folder / "table2-paper.png")
    if "ablations" in numbers:
        _ablations(numbers["ablations"], folder / "ablations.png")
    if "few_choices" in numbers:
        _few_choices(numbers["few_choices"], folder / "few-choices.png")


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> None:
    with atomic_file(path) as beside:
        figure.savefig(beside, format="png")


def _points(axes: Axes, at: list[float], found: list[Numbers], key: str, **style: Any) -> None:
    """Shares in percent with their intervals."""
    values = [100 * f[key] for f in found]
    below = [v - 100 * f["low"] for v, f in zip(values, found, strict=True)]
    above = [100 * f["high"] - v for v, f in zip(values, found, strict=True)]
    axes.errorbar(at, values, yerr=[below, above], capsize=2.5, **style)


def plain_axes(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _profiles(win_rates: Numbers, path: Path) -> None:
    """Win-rate of P-DPO for each profile, one color per opponent."""
    figure, ((axes,),) = new_figure(1, 1, 7.5, 3.2)
    opponents = list(win_rates)
    users = [u for u in next(iter(win_rates.values()))["users"] if u != "generic"]
    for i, name in enumerate(opponents):
        at = [u + (i - (len(opponents) - 1) / 2) * 0.12 for u in range(len(users))]
        found = [win_rates[name]["users"][u] for u in users]
        _points(axes, at, found, "rate", fmt="o", markersize=4, color=COLORS[i], label=f"against {name}")
    axes.axhline(50, color="#666666", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(users)), users)
    axes.set_ylim(0, 100)
    plain_axes(axes, "demo-profiles: win-rate of P-DPO by the exact oracle, a tie is half a win", "win-rate, %")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save_figure(figure, path)


def _crowd(seeds: Numbers, path: Path) -> None:
    """Win-rates on the crowd, for seen and unseen users, seeds next to each other."""
    figure, (panels,) = new_figure(1, 2, 7.5, 3.0)
    for axes, other in zip(panels, ("vanilla", "chosen"), strict=True):
        rates = [found["win_rates"] for found in seeds.values()]
        names = [name.removesuffix(f"-{other}") for name in rates[0] if name.endswith(f"-{other}")]
        for i, kind in enumerate(("seen", "unseen")):
            for number, found in enumerate(rates):
                points = [found[f"{name}-{other}"]["by_kind"][kind]["per_sample"]["tie_half"] for name in names]
                offset = 0.12 * (i * len(rates) + number - len(rates) + 0.5)
                at = [x + offset for x in range(len(names))]
                label = "" if number else f"{kind} users"
                _points(axes, at, points, "rate", fmt="o", markersize=4, color=COLORS[i], label=label)
        axes.axhline(50, color="#666666", linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 100)
        plain_axes(
            axes,
            "against vanilla DPO with text" if other == "vanilla" else "against the chosen response",
            "win-rate, %",
        )
    panels[1].legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _ablations(found: Numbers, path: Path) -> None:
    """Top: accuracy for the minority. Bottom: words per response for minority, majority and generic user."""
    figure, panels = new_figure(2, len(found), 2.0 * len(found), 4.6)
    for column, (key, values) in enumerate(found.items()):
        at = list(range(len(values)))
        accuracies = [v["minority_accuracy"] for v in values.values()]
        _points(panels[0][column], at, accuracies, "share", fmt="o-", markersize=4, color=COLORS[1])
        panels[0][column].set_ylim(0, 103)
        for i, kind in enumerate(("majority", "minority", "generic")):
            means = [v[kind]["words"] for v in values.values()]
            panels[1][column].errorbar(
                at, [m["mean"] for m in means], yerr=[1.96 * m["standard_error"] for m in means],
                fmt="o-", markersize=4, capsize=2.5, color=COLORS[i], label=kind,
            )  # fmt: skip
        panels[1][column].set_ylim(0, None)
        for row in (0, 1):
            panels[row][column].set_xticks(at, list(values), rotation=30)
        first = column == 0
        plain_axes(panels[0][column], key, "minority's accuracy, %" if first else "")
        plain_axes(panels[1][column], "", "words per response" if first else "")
    figure.legend(
        *panels[1][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    save_figure(figure, path)


def _few_choices(found: Numbers, path: Path) -> None:
    """Accuracy for seen users over comparisons per user, a panel for each noise, one line per model."""
    figure, (panels,) = new_figure(1, len(found), 3.2 * len(found), 3.2)
    names = list(dict.fromkeys(name for cells in found.values() for cell in cells.values() for name in cell))
    for axes, (noise, cells) in zip(panels, found.items(), strict=True):
        for i, name in enumerate(names):
            there = [(float(count), cell[name]["seen"]) for count, cell in cells.items() if name in cell]
            at, readings = [count * 1.04**i for count, _ in there], [reading for _, reading in there]
            _points(axes, at, readings, "rate", fmt="o-", markersize=3, linewidth=1, color=COLORS[i], label=name)
        axes.set_xscale("log")
        axes.set_xticks([float(count) for count in cells], list(cells))
        axes.minorticks_off()
        axes.set_ylim(40, 100)
        axes.set_xlabel("comparisons per user", fontsize=8)
        plain_axes(axes, f"{100 * float(noise):.0f} % of choices turned around", "accuracy, seen users, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    save_figure(figure, path)
