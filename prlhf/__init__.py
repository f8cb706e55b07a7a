"""Personalized language models from personalized human feedback (P-RLHF, arXiv 2402.05133).

    import prlhf

    data = prlhf.prepare("choices.jsonl", out="data/mine")
    run = prlhf.train(data, user_model="cluster", k=10, out="runs/mine")
    model = prlhf.load(run.run)
    model.generate("Explain tides.", user="ann")
    model.reward("Explain tides.", ["The moon.", "The sun."], user="ann")

Importing prlhf is fast: everything is imported on first use. `prlhf.train`, `prlhf.adapt`, `prlhf.generate`,
`prlhf.serve`, `prlhf.judge`, `prlhf.sweep` and `prlhf.export` are packages that can also be called: the call goes to
the function of that name in `prlhf.api`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prlhf.api import (
        adapt,
        ask,
        calibrate,
        compare_runs,
        conversations,
        export,
        feedback,
        forget,
        generate,
        judge,
        judge_checkpoint,
        judge_general,
        judge_messages,
        list_runs,
        load,
        plan_judging,
        plan_training,
        prepare,
        push,
        roll_back,
        serve,
        show_data,
        show_run,
        sweep,
        train,
        users,
    )  # fmt: skip
    from prlhf.errors import Interrupted, PrlhfError

__all__ = [
    "Interrupted", "PrlhfError", "adapt", "ask", "calibrate", "compare_runs", "conversations", "export", "feedback",
    "forget", "generate", "judge", "judge_checkpoint", "judge_general", "judge_messages", "list_runs", "load",
    "plan_judging", "plan_training", "prepare", "push", "roll_back", "serve", "show_data", "show_run", "sweep",
    "train", "users",
]  # fmt: skip

_HOMES = {name: "prlhf.errors" if name in ("Interrupted", "PrlhfError") else "prlhf.api" for name in __all__}
_PACKAGES = ("adapt", "export", "generate", "judge", "serve", "sweep", "train")


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prlhf' has no attribute '{name}'")
    # the package of the same name is callable, so the result does not depend on whether it was imported before
    home = f"prlhf.{name}" if name in _PACKAGES else None
    return importlib.import_module(home) if home else getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class CommandPackage(ModuleType):
    """A package that can also be called: the call goes to the function of the same name in `prlhf.api`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Call the function, which is imported by the first call; see `help(prlhf.api)`."""
        return getattr(importlib.import_module("prlhf.api"), self.__name__.rpartition(".")[2])(*args, **settings)


def make_callable(package: str) -> None:
    """Make the package of this name callable, while it is being imported."""
    sys.modules[package].__class__ = CommandPackage
