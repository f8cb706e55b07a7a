"""Output: tables and one-line errors for people, a JSON line for programs.

rich is imported when something is shown; help does not need it, which keeps help fast.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from prlhf.errors import Interrupted, PrlhfError

if TYPE_CHECKING:
    from prlhf.progress import Progress as Progress
    from prlhf.results import Rate

R = TypeVar("R")
Json = typer.Option("--json", help="Print a machine-readable summary as the last line of standard output.")


def run(work: Callable[[Progress], R], show: Callable[[R], None], as_json: bool) -> None:
    """Run a command's library function and show its result; bad input is one line and exit code 2."""
    bars = _progress()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # users cannot fix it
    try:
        result = work(bars)
    except PrlhfError as error:
        bars.finish()
        print_error(str(error))
        raise typer.Exit(2) from None
    except OSError as error:  # a path that is too long, a loop of links, no permission
        if not error.filename:
            raise
        bars.finish()
        print_error(f"cannot use {error.filename}: {error.strerror}; check the path")
        raise typer.Exit(2) from None
    except (Interrupted, KeyboardInterrupt) as error:
        bars.finish()
        typer.echo(f"interrupted: {str(error) or 'nothing was left half-written'}", err=True)
        raise typer.Exit(130) from None
    finally:
        bars.finish()
    if not as_json:
        show(result)
        return
    from prlhf.parse import json_text

    sys.stdout.write(json_text(_plain(result), ensure_ascii=False) + "\n")


def _plain(result: Any) -> Any:
    """The summaries of results, as values of JSON."""
    if isinstance(result, dict):
        return {key: _plain(value) for key, value in result.items()}
    if isinstance(result, list):
        return [_plain(value) for value in result]
    return result.summary() if hasattr(result, "summary") else result


def _progress() -> Progress:
    """Bars on a terminal; lines, some of them by the clock, where standard error is a file or a pipe."""
    from prlhf_cli.bars import STDERR, Bars
    from prlhf_cli.lines import Lines

    return Bars() if STDERR.is_terminal else Lines()


def leaderboard() -> Any:
    """A sweep's trials while they run, on standard error."""
    from prlhf_cli.bars import Leaderboard

    return Leaderboard()


def command_line() -> str:
    """What was typed."""
    return shlex.join(["prlhf", *sys.argv[1:]])


def print_error(line: str) -> None:
    """Show an error as one line on standard error."""
    typer.echo(f"{typer.style('error:', fg='red')} {' '.join(line.split())}", err=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> None:
    """A table on standard output; the first `texts` columns are text, the others are numbers."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    built = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        built.add_column(column, justify="left" if number < texts else "right")
    for row in rows:
        built.add_row(*(escape(_cell(value)) for value in row))
    Console().print(built)


def pieces(title: str, rows: Iterable[tuple[str, int, str, Sequence[str]]]) -> None:
    """Texts in pieces on standard output, a row each: its name, its tokens, its style, and its text or texts of tokens.

    Where there are several texts, a thin line stands between them.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    built = Table(title=Text(title), title_justify="left", show_header=False)
    built.add_column()
    built.add_column(justify="right")
    built.add_column()
    for name, count, style, texts in rows:
        built.add_row(
            Text(name),
            str(count),
            Text("\N{BOX DRAWINGS LIGHT VERTICAL}", "dim").join(Text(one, style) for one in texts),
        )
    Console().print(built)


def say(line: str) -> None:
    """Print a line on standard output."""
    typer.echo(line)


def percent(value: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(rate: Rate | None) -> str:
    """A rate with its interval: `61.8 % [52.0, 71.1]`; a dash for None."""
    return "-" if rate is None else f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def change(estimate: dict[str, float] | None) -> str:
    """A difference with its interval: `-0.012 [-0.031, +0.004]`; a dash for None."""
    return "-" if estimate is None else "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**estimate)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
