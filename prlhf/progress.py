"""What a long step tells about itself. The library reports; who shows it is the caller's affair."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """One bar at a time: `start` opens it, `advance` moves it, `finish` closes it; `note` prints a line."""

    def start(self, label: str, total: int) -> None: ...

    def advance(self, steps: int = 1, **values: float) -> None: ...

    def finish(self) -> None: ...

    def note(self, line: str) -> None: ...


class Silent:
    """Shows nothing: the default in notebooks, tests and workers."""

    def start(self, label: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1, **values: float) -> None:
        pass

    def finish(self) -> None:
        pass

    def note(self, line: str) -> None:
        pass


SILENT: Progress = Silent()
