"""Personalized language models from personalized human feedback (P-RLHF, arXiv 2402.05133).

    import prlhf

    data = prlhf.prepare("choices.jsonl", out="data/mine")
    run = prlhf.train(data, user_model="cluster", k=10, out="runs/mine")
    model = prlhf.load(run.run)
    model.generate("Explain tides.", user="ann")
    model.reward("Explain tides.", ["The moon.", "The sun."], user="ann")

Nothing heavy is imported before it is used. `prlhf.train`, `prlhf.generate`, `prlhf.judge` and `prlhf.sweep` are
packages that can be called: the call is the function of that name in `prlhf.api`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prlhf.api import generate, judge, judge_checkpoint, load, prepare, sweep, train
    from prlhf.errors import Interrupted, PrlhfError

__all__ = [
    "Interrupted", "PrlhfError", "generate", "judge", "judge_checkpoint", "load", "prepare", "sweep", "train",
]  # fmt: skip

_HOMES = {name: "prlhf.errors" if name in ("Interrupted", "PrlhfError") else "prlhf.api" for name in __all__}
_PACKAGES = ("generate", "judge", "sweep", "train")


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prlhf' has no attribute '{name}'")
    # a package of the same name is the one to be called, whether somebody has imported it before or not
    home = f"prlhf.{name}" if name in _PACKAGES else None
    return importlib.import_module(home) if home else getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
