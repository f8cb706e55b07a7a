"""Reports: self-contained HTML pages with pictures in SVG."""

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


def svg(figure: Figure) -> str:
    """Return the picture as an `<svg>` element. Texts stay texts; matplotlib escapes them."""
    from matplotlib import rc_context

    file = io.StringIO()
    warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)  # the browser has it
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "prlhf"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
