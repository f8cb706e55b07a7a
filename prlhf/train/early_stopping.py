"""Early stopping (`stop_metric`, `patience`): which evaluation is the best one, when to stop, and the best weights.

What counts is read from metrics.jsonl, which every checkpoint has a copy of, so a resumed run stops where an
uninterrupted one does. The weights of the best evaluation are whole in checkpoints/best, and in each checkpoint: users'
rows that were first trained later are as they were then.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prlhf.config import TrainConfig
from prlhf.config.train import LESS_IS_BETTER
from prlhf.dataset import Comparison
from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir, link_or_copy
from prlhf.model import workers
from prlhf.model.personalized import Personalized
from prlhf.model.weights import load_weights, save_weights
from prlhf.train import metrics
from prlhf.train.checkpoints import BEST


@dataclass(frozen=True)
class Standing:
    """The best evaluation so far."""

    step: int
    value: float
    waited: int  # evaluations since then

    def after(self, step: int, value: float, less: bool) -> Standing:
        """The standing after one more evaluation; of equal values the first one counts. `less`: less is better."""
        better = value < self.value if less else value > self.value
        return Standing(step, value, 0) if better else Standing(self.step, self.value, self.waited + 1)


def standing(rows: Iterable[dict[str, Any]], metric: str) -> Standing | None:
    """The best evaluation of a log (see metrics.py) by `metric`; None if there is no evaluation yet."""
    found = None
    for row in rows:
        if "eval" in row:
            step, value = row["step"], row["eval"][metric]
            found = found.after(step, value, metric in LESS_IS_BETTER) if found else Standing(step, value, 0)
    return found


def check_metric(config: TrainConfig, held_out: Iterable[Comparison], whose: str = "") -> None:
    """Raise PrlhfError if evaluations of the rows `held_out` will not have the metric to stop by.

    `whose`: what they are of, in the message, if they are not all of the data: ` of user ann`.
    """
    if config.stop_metric is None:
        return
    kinds = {"seen" if row.user_index else "unseen" for row in held_out}
    kind = config.stop_metric.removeprefix("accuracy_")
    if not kinds:
        raise PrlhfError(
            f"stop_metric = {config.stop_metric} needs evaluations, and {config.dataset} has no held-out "
            f"comparisons{whose}",
            "hold some out when the data are prepared, or leave stop_metric out",
        )
    if kind in ("seen", "unseen") and kind not in kinds:
        raise PrlhfError(
            f"stop_metric = {config.stop_metric}, and no held-out comparison is one of {kind} users",
            "set stop_metric to accuracy_macro",
        )


class EarlyStop:
    """The best evaluation of a run, its weights, and whether it is time to stop. The same on every worker."""

    def __init__(self, config: TrainConfig, metric: str) -> None:
        self.metric, self._patience = metric, config.patience
        self._log, self._folder = config.folder / "metrics.jsonl", config.folder / "checkpoints" / BEST
        self.best: Standing | None = None

    @property
    def due(self) -> bool:
        """Whether none of the last `patience` evaluations was better than the best one before them."""
        return self.best is not None and self.best.waited >= self._patience

    def begin(self, checkpoint: Path | None) -> None:
        """Take up what was known at `checkpoint`; without one, nothing is known."""
        self.best = standing(metrics.read(self._log), self.metric)
        shutil.rmtree(self._folder, ignore_errors=True)
        if checkpoint and (checkpoint / BEST).is_dir():
            shutil.copytree(checkpoint / BEST, self._folder, copy_function=link_or_copy)

    def look(self, model: Personalized) -> None:
        """Read the last evaluation in the log, which is that of `model`; the first worker keeps the best weights."""
        self.best = standing(metrics.read(self._log), self.metric)
        if self.best and self.best.waited == 0 and workers.rank() == 0:
            with atomic_dir(self._folder) as beside:
                save_weights(model, beside)

    def put_into(self, checkpoint: Path) -> None:
        """Add the best weights to a `checkpoint` that is being written."""
        if self._folder.is_dir():
            shutil.copytree(self._folder, checkpoint / BEST, copy_function=link_or_copy)

    def use(self, model: Personalized, step: int) -> dict[str, Any]:
        """On the first worker, load the best weights into `model`, which is at `step`; returns their evaluation."""
        assert self.best
        if self.best.step != step and workers.rank() == 0:
            load_weights(model, self._folder)
        return next(row["eval"] for row in metrics.read(self._log) if row["step"] == self.best.step and "eval" in row)

    def results(self) -> dict[str, Any]:
        """What results.json says of it."""
        assert self.best
        return {"metric": self.metric, "step": self.best.step, "value": self.best.value, "stopped": self.due}
