"""`report_to` is checked before anything is loaded or written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.train import metrics, trackers
from prlhf.train.dry_run import plan
from prlhf.train.per_user import train_per_user
from prlhf.train.run import train
from prlhf.train.trackers import run_name, tracker_names

MakeConfig = Callable[..., Any]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if tensorboard and wandb were there, and nobody logged in."""
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("none", []),
        ("", []),
        (" , ", []),
        ("tensorboard", ["tensorboard"]),
        (" TensorBoard ,tensorboard,", ["tensorboard"]),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    assert tracker_names(text) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensorbord", "report_to names an unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("mlflow", "the tracker mlflow is not installed; pip install mlflow, or leave report_to out"),
        ("tensorboard, comet_ml", "the tracker comet_ml is not installed; pip install comet-ml"),
        (
            "tensorboard, none",
            "report_to = tensorboard, none has 'none' beside others; name trackers, or none, all or auto",
        ),
        ("auto,tensorboard", "has 'auto' beside others"),
        ("all,tensorboard", "has 'all' beside others"),
        ("wandb", "wandb would ask for a login: it has none here; run `wandb login`, or set WANDB_MODE=offline"),
        ("all", "wandb would ask for a login"),
    ],
)
def test_refused(text: str, said: str) -> None:
    with pytest.raises(PrlhfError) as error:
        tracker_names(text)
    assert said in str(error.value)


@pytest.mark.parametrize("there", [True, False])
def test_trackio_is_the_default_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: (name == "trackio" and there) or None)
    assert tracker_names(TrainConfig().report_to) == (["trackio"] if there else [])


def test_a_run_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    os.utime(tmp_path / "recipe.yaml", (0, 0))
    assert run_name(tmp_path) == f"{tmp_path.name} 1970-01-01 00:00:00"
    assert run_name(tmp_path / "new").startswith("new 2")


def test_wandb_with_a_key_or_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert tracker_names("all") == ["tensorboard", "wandb"]
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_API_KEY", "0" * 40)
        assert tracker_names("wandb") == ["wandb"]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert tracker_names("wandb") == ["wandb"]
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/x")
    with pytest.raises(PrlhfError, match="would ask for a login"):
        tracker_names("wandb")


@pytest.mark.parametrize("start", [train, train_per_user, plan])
def test_nothing_is_loaded_or_written(tmp_path: Path, make_config: MakeConfig, start: Any) -> None:
    config = make_config(tmp_path / "run", report_to="mlflow", model=str(tmp_path / "no-model"))
    with pytest.raises(PrlhfError, match="the tracker mlflow is not installed"):
        start(config)
    assert not (tmp_path / "run").exists()


class Recorder(TrainerCallback):
    """A tracker that records its events, in order."""

    logging_dir = "logs"  # as TensorBoard's has
    events: ClassVar[list[tuple[Any, ...]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("begin", state.global_step, args.learning_rate))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.events.append(("log", state.global_step, logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append(("end", state.global_step))


@pytest.mark.parametrize(("objective", "name"), [("dpo", "eval_accuracy_macro"), ("sft", "eval_nats_per_token")])
def test_a_tracker_gets_every_step_and_evaluation(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, objective: str, name: str
) -> None:
    """Under the names that transformers' trackers know; they get what metrics.jsonl holds."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    monkeypatch.setattr(Recorder, "events", [])
    config = make_config(tmp_path / "run", report_to="tensorboard", objective=objective, eval_every=3)
    train(config)
    begin, *logs, end = Recorder.events
    assert begin == ("begin", 0, config.lr)
    assert end == ("end", 6)
    rows = metrics.read(tmp_path / "run/metrics.jsonl")
    assert [(step, numbers["loss"]) for _, step, numbers in logs if "loss" in numbers] == [
        (row["step"], row["loss"]) for row in rows if "loss" in row
    ]
    assert [(step, numbers[name]) for _, step, numbers in logs if name in numbers] == [
        (row["step"], row["eval"][name.removeprefix("eval_")]) for row in rows if "eval" in row
    ]
    assert sum(name in numbers for _, _, numbers in logs) == 2
