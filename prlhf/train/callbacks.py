"""What follows a run while it goes on, and what can end it before its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from prlhf.model import workers
from prlhf.progress import Interruptible, Progress
from prlhf.train import metrics

Report = Callable[[dict[str, float]], None]  # is told of every evaluation: `step`, and its numbers as `eval/NAME`


class Follow(TrainerCallback):
    """Writes metrics.jsonl, moves the progress bar and hands evaluations on."""

    left_out: frozenset[str] = frozenset()  # numbers that are not written

    def __init__(self, metrics_path: Path, progress: Progress, report: Report | None = None) -> None:
        self.path, self.progress, self.report = metrics_path, progress, report

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.start("training", state.max_steps)
        self.progress.advance(state.global_step)

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        kept = {name: value for name, value in logs.items() if name not in self.left_out}
        metrics.append(self.path, {"step": state.global_step, **kept})
        self.progress.advance(1, **{name: logs[name] for name in ("loss", "accuracy") if name in logs})

    @override
    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.report and metrics:
            self.report({"step": state.global_step} | {k.replace("eval_", "eval/", 1): v for k, v in metrics.items()})


class Stop(Interruptible, TrainerCallback):
    """Ends the run after the step in hand, all workers after the same one, and saves a checkpoint.

    Ctrl-C asks for it, or whatever else sets `asked`.
    """

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.asked = bool(workers.most(self.asked))
        if self.asked:
            control.should_save = control.should_training_stop = True
        return control
