"""Progress as lines of a log, where standard error is not a terminal: CI, nohup, a pipe."""

from __future__ import annotations

import sys
import threading
import time

EVERY_SECONDS = 30.0


class Lines:
    """prlhf.progress.Progress on standard error: a line where a phase starts and ends, and every half minute between.

    The lines between follow the clock and not the steps, so that a log tells a slow step from a process that is gone.
    """

    def __init__(self, every: float = EVERY_SECONDS) -> None:
        self._every = every
        self._phase: Phase | None = None

    def start(self, label: str, total: int) -> None:
        """Begin a phase of `total` steps."""
        self.finish()
        self._phase = Phase(label, total)
        self.note(self._phase.line())
        threading.Thread(target=self._repeat, args=(self._phase,), daemon=True).start()

    def advance(self, steps: int = 1, **values: float) -> None:
        """Count `steps`, and keep `values` for the next line."""
        if self._phase:
            self._phase.advance(steps, values)

    def finish(self) -> None:
        """End the phase, if there is one."""
        phase, self._phase = self._phase, None
        if phase:
            phase.over.set()
            self.note(phase.last_line())

    def note(self, line: str) -> None:
        """Write a line."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _repeat(self, phase: Phase) -> None:
        while not phase.over.wait(self._every):
            self.note(phase.line())


class Phase:
    """Steps, time and newest values of one phase.

    The first advance is not part of the rate: it may be the steps that an earlier run made.
    """

    def __init__(self, label: str, total: int) -> None:
        self.over = threading.Event()
        self._label, self._total = label, total
        self._done, self._values = 0, dict[str, float]()
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # steps and time after the first advance

    def advance(self, steps: int, values: dict[str, float]) -> None:
        """Count `steps`."""
        self._done += steps
        self._values = self._values | values
        self._first = self._first or (self._done, time.monotonic())

    def line(self) -> str:
        """`training: 40/200, 1.33/s, 2 min 0 s left, loss 0.654`."""
        rate = self._rate()
        speed = [f"{rate:.3g}/s", f"{duration((self._total - self._done) / rate)} left"] if rate else []
        return ", ".join([self._count(), *speed, *self._shown()])

    def last_line(self) -> str:
        """`training: 200/200 in 2 min 30 s, loss 0.512`."""
        return ", ".join([f"{self._count()} in {duration(time.monotonic() - self._began)}", *self._shown()])

    def _rate(self) -> float:
        """Steps per second; 0 as long as it is not known."""
        if self._first is None:
            return 0.0
        done, at = self._first
        return (self._done - done) / max(time.monotonic() - at, 1e-9)

    def _count(self) -> str:
        return f"{self._label}: {self._done}/{self._total}"

    def _shown(self) -> list[str]:
        return [f"{key} {value:.3f}" for key, value in self._values.items()]


def duration(seconds: float) -> str:
    """`45 s`, `2 min 5 s` or `3 h 20 min`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
