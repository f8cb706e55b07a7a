"""What a person sees: progress bars, tables, one-line errors; and the JSON line a program reads."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from prlhf.errors import Interrupted, PrlhfError

STDERR = Console(stderr=True)

Json = typer.Option("--json", help="Print a machine-readable summary as the last line of standard output.")


class Bars:
    """prlhf.progress.Progress on standard error: a bar with its end, a rate, the time left and the last values."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._values: dict[str, float] = {}

    def start(self, label: str, total: int) -> None:
        self.finish()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=STDERR,
        )
        self._bar.start()
        self._values = {}
        self._task = self._bar.add_task(label, total=total, rate="", values="")

    def advance(self, steps: int = 1, **values: float) -> None:
        if self._bar is None or self._task is None:
            return
        self._values |= values
        task = self._bar.tasks[0]
        speed = task.speed or task.finished_speed
        self._bar.update(
            self._task,
            advance=steps,
            rate=f"{speed:.3g}/s" if speed else "",
            values="  ".join(f"{key} {value:.3f}" for key, value in self._values.items()),
        )

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def note(self, line: str) -> None:
        STDERR.print(escape(line), soft_wrap=True, highlight=False)


def run(work: Callable[[Bars], dict[str, Any]], show: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    """Run a command's library function and show its result; bad input is one line and exit code 2."""
    bars = Bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # not for our users to mend
    try:
        result = work(bars)
    except PrlhfError as error:
        bars.finish()
        print_error(str(error))
        raise typer.Exit(2) from None
    except (Interrupted, KeyboardInterrupt) as error:
        bars.finish()
        STDERR.print(f"interrupted: {escape(str(error) or 'nothing was left half-written')}", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        bars.finish()
    if not as_json:
        show(result)
        return
    sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def print_error(line: str) -> None:
    STDERR.print(f"[red]error:[/red] {escape(' '.join(line.split()))}", soft_wrap=True, highlight=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    built = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        built.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        built.add_row(*(escape(_cell(value)) for value in row))
    Console().print(built)


def say(line: str) -> None:
    Console().print(escape(line), soft_wrap=True, highlight=False)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(rate: dict[str, float] | None, key: str = "rate") -> str:
    """`61.8 % [52.0, 71.1]`"""
    if rate is None:
        return "-"
    return f"{100 * rate[key]:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
