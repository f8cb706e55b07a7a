"""Progress of long steps, which the library reports and the caller shows, and Ctrl-C as a request to stop soon."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Protocol

from typing_extensions import override


class Progress(Protocol):
    """Shows one bar at a time: `start` opens it, `advance` moves it, `finish` closes it; `note` shows a line."""

    def start(self, label: str, total: int) -> None:
        """Open a bar of `total` steps."""

    def advance(self, steps: int = 1, **values: float) -> None:
        """Move the bar by `steps`, and show `values` beside it."""

    def finish(self) -> None:
        """Close the bar, if one is open."""

    def note(self, line: str) -> None:
        """Show a line."""


class Silent(Progress):
    """A display that shows nothing, the default in notebooks, tests and workers."""

    @override
    def start(self, label: str, total: int) -> None:
        pass

    @override
    def advance(self, steps: int = 1, **values: float) -> None:
        pass

    @override
    def finish(self) -> None:
        pass

    @override
    def note(self, line: str) -> None:
        pass


SILENT: Progress = Silent()


class Interruptible:
    """A context in which the first Ctrl-C in the main thread sets `asked`, and the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
