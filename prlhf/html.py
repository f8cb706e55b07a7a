"""Reports: self-contained HTML pages with pictures in SVG."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from prlhf.errors import PrlhfError
from prlhf.files import atomic_file
from prlhf.folders import claim_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
BARS = 40  # the most bars of single users in a picture


def write_page(path: Path, package: str, template: str, **context: Any) -> None:
    """Fill in the template from `package` with `context` and write the page. Text is escaped, unless it is `Markup`.

    Raises:
        PrlhfError: the page cannot be written.
    """
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("prlhf").joinpath("pages.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(style=Markup(style), **context)
    with atomic_file(path) as beside:
        beside.write_text(page, encoding="utf-8")


def claim_page(path: Path, generator: str) -> None:
    """Check that a page that names `generator` may be written: nothing is there, or such a page. Raises PrlhfError."""
    claim_file(path, "choose another --html")
    if os.path.lexists(path) and f'content="{generator}"' not in path.read_text("utf-8", errors="replace")[:500]:
        raise PrlhfError(f"{path} exists and is not a page of {generator}", "choose another --html")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Create an empty picture; width and height are in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def plain(axes: Axes) -> None:
    """Give `axes` a light grid, and no frame at the top and on the right."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def bars_by_user(shares: Mapping[str, float], meaning: str) -> str:
    """A picture of each user's share, the lowest first, orange below one half; of more than BARS evenly spaced ones."""
    ranked = sorted(shares.items(), key=lambda one: one[1])
    shown = ranked if len(ranked) <= BARS else [ranked[i * (len(ranked) - 1) // (BARS - 1)] for i in range(BARS)]
    longest = max(len(label(user)) for user, _ in shown)
    figure, axes = canvas(max(3.0, 1.2 + 0.24 * len(shown)), 2.6 + 0.07 * longest)
    axes.bar(range(len(shown)), [share for _, share in shown], color=[BLUE if s >= 0.5 else ORANGE for _, s in shown])
    axes.set_xticks(range(len(shown)), [label(user) for user, _ in shown], rotation=90, fontsize=7)
    axes.set_ylim(0, 1)
    axes.axhline(0.5, color="#222222", lw=1, ls="--")
    axes.set_ylabel(meaning)
    plain(axes)
    return svg(figure)


def label(name: str, most: int = 30) -> str:
    """A name in a picture, of at most `most` letters; `$`, with which formulas start in matplotlib, is escaped."""
    return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


def percent(value: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: Any) -> str:
    """A value in a table: numbers with five digits, nothing for None."""
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def svg(figure: Figure) -> str:
    """Return the picture as an `<svg>` element. Texts stay texts; matplotlib escapes them."""
    from matplotlib import rc_context

    file = io.StringIO()
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)  # the browser has it
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "prlhf"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
