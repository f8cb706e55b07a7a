"""A number that is not finite ends a run at the step where it appears, on all workers together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prlhf.config import TrainConfig
from prlhf.errors import NotFinite
from prlhf.model import workers
from prlhf.model.base import pick_device, pick_dtype

NAMED = 3  # rows that a message names


class Watch:
    """Checks the numbers of each step, and knows which rows they come from."""

    def __init__(self) -> None:
        self._rows: list[tuple[Sequence[str], Tensor]] = []

    def add_rows(self, ids: Sequence[str], losses: Tensor) -> None:
        """Keep the losses [n] of the rows `ids` until the step is checked."""
        self._rows.append((ids, losses.detach()))

    def check(self, config: TrainConfig, step: int, loss: Tensor | float, norm: Tensor | float) -> None:
        """Raise NotFinite, on every worker if on one, if the loss or the norm of the gradient is not finite."""
        rows, self._rows = self._rows, []
        lost = not math.isfinite(float(loss))
        if not workers.most(lost or not math.isfinite(float(norm))):
            return
        lost = any(workers.gather(lost))
        every = {name for ids, _ in rows for name in ids}
        bad = {name for ids, values in rows for name in _not_finite(ids, values)}
        every, bad = (set().union(*workers.gather(names)) for names in (every, bad))
        raise _ended(config, step, "loss" if lost else "gradient", sorted(bad) if len(bad) < len(every) else [])


def check_parameters(config: TrainConfig, step: int, parameters: Iterable[nn.Parameter]) -> None:
    """Raise NotFinite, on every worker if on one, if trained weights are not finite after `step`."""
    trained = (p.to_local() if isinstance(p, DTensor) else p for p in parameters if p.requires_grad)
    if workers.most(not all(bool(torch.isfinite(p).all()) for p in trained)):
        raise _ended(config, step, "weights", [])


def check_summary(config: TrainConfig, step: int, summary: dict[str, Any]) -> None:
    """Raise NotFinite if a number of an evaluation is not finite. `summary` is the same on every worker."""
    if not all(math.isfinite(value) for value in summary.values() if isinstance(value, float)):
        raise _ended(config, step, "evaluation", [])


def _not_finite(ids: Sequence[str], values: Tensor) -> list[str]:
    return [name for name, fine in zip(ids, torch.isfinite(values).tolist(), strict=True) if not fine]


def _ended(config: TrainConfig, step: int, what: str, rows: list[str]) -> NotFinite:
    """The error; `rows` are named if they alone are at fault, and not all rows of a step."""
    kept = _newest(config.folder)
    saved = f"{kept} is kept" if kept else "no checkpoint was written before"
    if rows:
        named = ", ".join(rows[:NAMED]) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
        cause = f"look at these rows of {config.dataset}"
    else:
        named = ""
        users = "" if config.objective == "sft" else f" or user_lr (now {config.user_lr:g})"
        rates = f"lr (now {config.lr:g}){users}"
        low = pick_dtype(config.precision, pick_device(config.device)) != torch.float32
        exact = ", or with precision = fp32," if low else ""
        cause = f"train with a lower {rates}{exact} into a new run folder"
    of, verb = f" of comparison {named}" if named else "", "are" if what == "weights" else "is"
    return NotFinite(f"the {what}{of} {verb} not finite at step {step}: the run ended there, {saved}", cause)


def _newest(folder: Path) -> str:
    """The name of the newest checkpoint, empty if there is none."""
    steps = [int(path.name.partition("-")[2]) for path in (folder / "checkpoints").glob("checkpoint-*")]
    return f"checkpoint-{max(steps)}" if steps else ""
