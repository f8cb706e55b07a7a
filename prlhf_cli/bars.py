"""Progress bars on standard error."""

from __future__ import annotations

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

STDERR = Console(stderr=True)


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
