"""Trainings that end in their middle: a progress that dies, or does something else, at a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prlhf.progress import Silent


class Killed(Exception):
    pass


class StopAt(Silent):
    """Dies, or does something else, when the loss of a step has been logged."""

    def __init__(self, step: int, do: Callable[[], Any] | None = None) -> None:
        self.step, self.do = step, do

    def advance(self, steps: int = 1, **values: float) -> None:
        if "loss" not in values:
            return
        self.step -= 1
        if self.step == 0:
            if self.do is None:
                raise Killed
            self.do()
