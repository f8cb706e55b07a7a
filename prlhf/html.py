"""Reports: HTML pages that need nothing beside them, and pictures drawn into them as SVG."""

from __future__ import annotations

import io
import warnings
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from prlhf.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"


def write_page(path: Path, package: str, template: str, **context: Any) -> None:
    """Fill in a template that lies in `package`. Whatever is text is escaped; only `Markup` goes in as it is."""
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("prlhf").joinpath("pages.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(source).render(style=Markup(style), **context)
    with atomic_file(path) as beside:
        beside.write_text(page, encoding="utf-8")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of so many inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def plain(axes: Axes) -> None:
    """A light grid, and no frame where there is no axis."""
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def svg(figure: Figure) -> str:
    """The picture as it stands in a page: without the file's head, with texts as texts, which matplotlib escapes."""
    from matplotlib import rc_context

    file = io.StringIO()
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)  # texts stay texts
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "prlhf"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
