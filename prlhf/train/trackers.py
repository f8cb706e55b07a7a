"""Experiment trackers (`report_to`): checked before a run loads or writes anything, then sent its numbers."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.model import workers
from prlhf.model.base import pick_device
from prlhf.progress import Progress
from prlhf.train.tracker_pages import close_run, is_open, place_of, send_table

AUTO = "trackio"  # what `auto` stands for, where it is installed
PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit", "dagshub": "dagshub mlflow"}
RECIPE = "recipe.yaml"  # of the run folder, written when a run begins
WANDB_HOST = "api.wandb.ai"


class Trackers:
    """The trackers of a run, by transformers' public callbacks; without any, nothing is imported.

    Only the first worker's numbers are sent. What trackers print goes to standard error.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, steps: int) -> None:
        self.callbacks: dict[str, Any] = {}  # by name
        names = tracker_names(config.report_to)
        if not names:
            return
        from transformers import TrainerControl, TrainerState
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        self.settings, self.control = _as_arguments(config, names), TrainerControl()
        self.state = TrainerState(max_steps=steps, logging_steps=1, is_world_process_zero=workers.rank() == 0)
        self.model = model
        kinds = get_reporting_integration_callbacks(names)
        self.callbacks = {name: kind() for name, kind in zip(names, kinds, strict=True)}
        self._call("on_init_end")

    def begin(self, step: int, progress: Progress) -> None:
        """Training begins after optimizer step `step`; `progress` notes where each tracker shows it."""
        self.theirs = {name for name in self.callbacks if is_open(name)}  # runs of the caller
        self._call("on_train_begin", step)
        if workers.rank() == 0:
            for name, callback in self.callbacks.items():
                if where := place_of(name, callback):
                    progress.note(f"{name}: {where}")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the `numbers` of a step; those of evaluations are called `eval_NAME`."""
        self._call("on_log", step, logs=dict(numbers))

    def samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Send what the model wrote after `step` (see samples.py) to the trackers that have tables."""
        with redirect_stdout(sys.stderr):
            for name, callback in self.callbacks.items():
                send_table(name, callback, step, rows)

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        self._call("on_save", step)

    def end(self, step: int) -> None:
        """Training ended after `step`."""
        self._call("on_train_end", step)
        for name in self.callbacks.keys() - self.theirs:
            close_run(name)

    def _call(self, event: str, step: int = 0, **values: Any) -> None:
        for callback in self.callbacks.values():
            self.state.global_step, self.state.epoch = step, values.get("logs", {}).get("epoch")
            with redirect_stdout(sys.stderr):
                getattr(callback, event)(self.settings, self.state, self.control, model=self.model, **values)


def _as_arguments(config: TrainConfig, names: list[str]) -> Any:
    """The settings of a run under transformers' names, which is how trackers show them."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(config.folder / "checkpoints"),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        report_to=names,
        run_name=run_name(config.folder),
        use_cpu=pick_device(config.device).type == "cpu",
    )


def run_name(folder: Path) -> str:
    """A run's name for trackers: its folder, and when it began, so that it is the same one after `--resume`."""
    recipe = folder / RECIPE
    began = datetime.fromtimestamp(recipe.stat().st_mtime, UTC) if recipe.exists() else datetime.now(UTC)
    return f"{folder.name} {began:%Y-%m-%d %H:%M:%S}"


def tracker_names(report_to: str) -> list[str]:
    """The trackers that `report_to` names, separated by commas.

    `all` stands for all that are installed, `auto` for trackio where that is installed.

    Raises:
        PrlhfError: a tracker is unknown, is not installed, or would ask for a login.
    """
    if report_to.strip().lower() == "auto":
        return [AUTO] if find_spec(AUTO) else []  # without an import of transformers
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = list(dict.fromkeys(name.strip().lower() for name in report_to.split(",") if name.strip())) or ["none"]
    known = set(INTEGRATION_TO_CALLBACK)
    if len(names) > 1 and (alone := {"none", "all", "auto"} & set(names)):
        raise PrlhfError(
            f"report_to = {report_to} has '{alone.pop()}' beside others", "name trackers, or none, all or auto"
        )
    if names == ["none"]:
        return []
    there = set(get_available_reporting_integrations())
    if "flyte" in names and _has_flyte():
        there.add("flyte")
    if names == ["all"]:
        names = sorted(there)
    for name in names:
        if name not in known:
            raise PrlhfError(
                f"report_to names an unknown tracker '{name}'", nearest(name, {*known, "none", "all", "auto"})
            )
        if name not in there:
            package = PACKAGES.get(name, name)
            raise PrlhfError(f"the tracker {name} is not installed", f"pip install {package}, or leave report_to out")
    if "wandb" in names and not _wandb_can_start():
        raise PrlhfError(
            "wandb would ask for a login: it has none here", "run `wandb login`, or set WANDB_MODE=offline"
        )
    return names


def _has_flyte() -> bool:
    from transformers.integrations.integration_utils import is_flytekit_available

    return bool(is_flytekit_available())


def _wandb_can_start() -> bool:
    """Whether Weights & Biases has a key, or needs none."""
    if os.environ.get("WANDB_MODE", "online").lower() != "online" or os.environ.get("WANDB_API_KEY"):
        return True
    host = (
        os.environ.get("WANDB_BASE_URL", f"https://{WANDB_HOST}")
        .partition("://")[2]
        .partition("/")[0]
        .partition(":")[0]
    )
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
