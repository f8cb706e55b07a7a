"""Progress bars on standard error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
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

if TYPE_CHECKING:
    from prlhf.config import SweepConfig
    from prlhf.sweep.trials import Trial

SHOWN = 12  # trials on the leaderboard

STDERR = Console(stderr=True)


class Bars:
    """prlhf.progress.Progress on standard error: a bar with steps, rate, time left and the newest values."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._values: dict[str, float] = {}

    def start(self, label: str, total: int) -> None:
        """Open a bar of `total` steps."""
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
        """Move the bar, and show `values` beside it."""
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
        """Close the bar, if one is open."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def note(self, line: str) -> None:
        """Show a line."""
        STDERR.print(escape(line), soft_wrap=True, highlight=False)


class Leaderboard:
    """prlhf.sweep.trials.TrialDisplay on standard error.

    A table that changes in place shows the best trials and the running ones. Without a terminal, each trial that ends
    gets a line.
    """

    def __init__(self) -> None:
        self._live: Live | None = None
        self._trials: Sequence[Trial] = []
        self._sweep: SweepConfig | None = None
        self._total = self._before = 0
        self._began = 0.0

    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        """Show a sweep of `total` trials, of which `trials` are known."""
        self._sweep, self._trials, self._total, self._began = sweep, trials, total, time.monotonic()
        self._before = self._ended()
        if STDERR.is_terminal:
            self._live = Live(console=STDERR, get_renderable=self._table, refresh_per_second=2)
            self._live.start()

    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        """Show that `trial` started, was evaluated or ended."""
        self._trials = trials
        if self._live is None and trial.status not in ("planned", "running"):
            STDERR.print(
                escape(f"{self._headline()}: {trial.name} {self._line_of(trial)}"), soft_wrap=True, highlight=False
            )

    def end(self) -> None:
        """Close the board."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    def _ended(self) -> int:
        return sum(trial.status in ("done", "stopped", "failed") for trial in self._trials)

    def _headline(self) -> str:
        """The progress: `3/20 trials, 0.5/min, 34 min left`."""
        ended = self._ended()
        minutes = (time.monotonic() - self._began) / 60
        line = f"{ended}/{self._total} trials"
        if ended > self._before and minutes > 0:
            rate = (ended - self._before) / minutes
            line += f", {rate:.2g}/min, {(self._total - ended) / rate:.1f} min left"
        return line

    def _value(self, trial: Trial) -> float | None:
        value = (trial.result or {}).get(self._sweep.metric) if self._sweep else None
        return value if isinstance(value, int | float) else None

    def _line_of(self, trial: Trial) -> str:
        value = self._value(trial)
        point = " ".join(f"{key}={_short(value)}" for key, value in trial.point.items())
        what = trial.error or (f"{self._sweep.metric} {value:.4f}" if self._sweep and value is not None else "")
        return f"({point}) {trial.status} {what}".rstrip()

    def _table(self) -> Table:
        assert self._sweep
        sign = -1 if self._sweep.mode == "max" else 1
        ranked = [t for t in self._trials if t.status in ("done", "stopped") and self._value(t) is not None]
        ranked.sort(key=lambda t: (t.status != "done", sign * (self._value(t) or 0.0)))
        running = [t for t in self._trials if t.status == "running"]
        failed = [t for t in self._trials if t.status == "failed"]
        keys = list(self._trials[0].point) if self._trials else []
        table = Table(title=self._headline(), title_justify="left")
        for name in ("trial", *keys, "status", "step", self._sweep.metric):
            table.add_column(escape(name), justify="left" if name == "trial" else "right")
        for trial in [*ranked[: max(0, SHOWN - len(running))], *running, *failed[-3:]]:
            value, result = self._value(trial), trial.result or {}
            step = str(result.get("steps", result.get("step", "")))
            shown = "" if value is None else f"{value:.4f}"
            cells = (trial.name, *map(_short, trial.point.values()), trial.status, step, shown)
            table.add_row(*map(escape, cells), style="bold" if ranked and trial is ranked[0] else None)
        return table


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
