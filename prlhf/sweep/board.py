"""What a sweep tells about its trials while they run. The library tells; who shows it is the caller's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from typing_extensions import override

from prlhf.config import SweepConfig
from prlhf.sweep.trials import Trial


class Board(Protocol):
    """`begin` opens it, `changed` is told of a trial that started, was evaluated or ended, `end` closes it."""

    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        """Show a sweep of `total` trials, of which `trials` are known."""

    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        """Show that `trial` started, was evaluated or ended."""

    def end(self) -> None:
        """Close the board."""


class Unseen(Board):
    """Shows nothing."""

    @override
    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        pass

    @override
    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        pass

    @override
    def end(self) -> None:
        pass


UNSEEN: Board = Unseen()
