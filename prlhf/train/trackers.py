"""Experiment trackers (`report_to`): checked before a run loads or writes anything, then sent its numbers."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.model import workers
from prlhf.model.base import pick_device

PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit", "dagshub": "dagshub mlflow"}
WANDB_HOST = "api.wandb.ai"


class Trackers:
    """The trackers of a run, by transformers' public callbacks; without any, nothing is imported.

    Only the first worker's numbers are sent.
    """

    def __init__(self, config: TrainConfig, model: nn.Module, steps: int) -> None:
        self.callbacks: list[Any] = []
        names = tracker_names(config.report_to)
        if not names:
            return
        from transformers import TrainerControl, TrainerState
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        self.settings, self.control = _as_arguments(config, names), TrainerControl()
        self.state = TrainerState(max_steps=steps, logging_steps=1, is_world_process_zero=workers.rank() == 0)
        self.model = model
        self.callbacks = [callback() for callback in get_reporting_integration_callbacks(names)]
        self._call("on_init_end")

    def begin(self, step: int) -> None:
        """Training begins after optimizer step `step`."""
        self._call("on_train_begin", step)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Send the `numbers` of a step; those of evaluations are called `eval_NAME`."""
        self._call("on_log", step, logs=dict(numbers))

    def samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Send what the model wrote after `step` (see samples.py) to TensorBoard, which has tables as texts."""
        for writer in filter(None, (getattr(callback, "tb_writer", None) for callback in self.callbacks)):
            for row in rows:
                writer.add_text(f"samples/{row['user_id']}/{row['prompt_id']}", row["response"], step)

    def saved(self, step: int) -> None:
        """A checkpoint was written."""
        self._call("on_save", step)

    def end(self, step: int) -> None:
        """Training ended after `step`."""
        self._call("on_train_end", step)

    def _call(self, event: str, step: int = 0, **values: Any) -> None:
        for callback in self.callbacks:
            self.state.global_step, self.state.epoch = step, values.get("logs", {}).get("epoch")
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
        use_cpu=pick_device(config.device).type == "cpu",
    )


def tracker_names(report_to: str) -> list[str]:
    """The trackers that `report_to` names, separated by commas; `all` stands for all that are installed.

    Raises:
        PrlhfError: a tracker is unknown, is not installed, or would ask for a login.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = list(dict.fromkeys(name.strip().lower() for name in report_to.split(",") if name.strip())) or ["none"]
    known = set(INTEGRATION_TO_CALLBACK)
    if len(names) > 1 and (alone := {"none", "all"} & set(names)):
        raise PrlhfError(f"report_to = {report_to} has '{alone.pop()}' beside others", "name trackers, or none, or all")
    if names == ["none"]:
        return []
    there = set(get_available_reporting_integrations())
    if "flyte" in names and _has_flyte():
        there.add("flyte")
    if names == ["all"]:
        names = sorted(there)
    for name in names:
        if name not in known:
            raise PrlhfError(f"report_to names an unknown tracker '{name}'", nearest(name, {*known, "none", "all"}))
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
