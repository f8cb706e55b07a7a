"""What a long step tells about itself. The library reports; who shows it is the caller's affair."""

from __future__ import annotations

from typing import Protocol

from typing_extensions import override


class Progress(Protocol):
    """One bar at a time: `start` opens it, `advance` moves it, `finish` closes it; `note` prints a line."""

    def start(self, label: str, total: int) -> None:
        """Open a bar of `total` steps."""

    def advance(self, steps: int = 1, **values: float) -> None:
        """Move the bar, and show `values` beside it."""

    def finish(self) -> None:
        """Close the bar, if one is open."""

    def note(self, line: str) -> None:
        """Show a line."""


class Silent(Progress):
    """Shows nothing: the default in notebooks, tests and workers."""

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
