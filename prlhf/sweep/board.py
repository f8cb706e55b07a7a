"""What a sweep tells about its trials while they run. The library tells; who shows it is the caller's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prlhf.config import SweepConfig
from prlhf.sweep.trials import Trial


class Board(Protocol):
    """`begin` opens it, `changed` is told of a trial that started, was evaluated or ended, `end` closes it."""

    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None: ...

    def changed(self, trials: Sequence[Trial], trial: Trial) -> None: ...

    def end(self) -> None: ...


class Unseen:
    """Shows nothing."""

    def begin(self, sweep: SweepConfig, trials: Sequence[Trial], total: int) -> None:
        pass

    def changed(self, trials: Sequence[Trial], trial: Trial) -> None:
        pass

    def end(self) -> None:
        pass


UNSEEN: Board = Unseen()
