"""Trackers by their own packages, without a network: each test reads back what one training run sent.

A tracker that is not installed is skipped; `pip install 'prlhf[tracking,wandb,mlflow,tensorboard]'` has all of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prlhf.progress import Silent
from prlhf.train import metrics
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
KNOWN = ("tensorboard", "wandb", "mlflow", "trackio")


class Sent(NamedTuple):
    """A run that reported to all trackers that are installed, and what was noted and printed meanwhile."""

    folder: Path
    home: Path
    notes: list[str]

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(row["step"], row["loss"]) for row in metrics.read(self.folder / "metrics.jsonl") if "loss" in row]

    @property
    def samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "samples.jsonl").read_text().splitlines()]

    def place(self, tracker: str) -> str:
        (found,) = [line for line in self.notes if line.startswith(f"{tracker}: ")]
        return found


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Iterator[Sent]:
    home, notes = tmp_path_factory.mktemp("trackers"), Notes()
    names = [name for name in KNOWN if find_spec(name)]
    if not names:
        pytest.skip("none of the trackers is installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(home),
            "WANDB_SILENT": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
            "MLFLOW_EXPERIMENT_NAME": "prlhf",
            "GIT_PYTHON_REFRESH": "quiet",
        }.items():
            patch.setenv(name, value)
        patch.chdir(home)  # mlflow puts tables into ./mlartifacts or ./mlruns
        config = make_config(
            home / "run", report_to=",".join(names), max_steps=4, sample_every=2, sample_users=1, sample_prompts=1
        )
        train(config, progress=notes)
        yield Sent(home / "run", home, notes.lines)


def test_tensorboard(sent: Sent) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(sent.place("tensorboard").removeprefix("tensorboard: tensorboard --logdir "))
    assert folder.is_relative_to(sent.folder)
    events = EventAccumulator(str(folder)).Reload()
    read = [(one.step, one.value) for one in events.Scalars("train/loss")]
    assert read == [(step, pytest.approx(loss)) for step, loss in sent.losses]
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    assert len(texts) == 2  # ann and the generic user, with one prompt
    for tag in texts:
        user = tag.split("/")[1]
        written = [(one["step"], one["response"]) for one in sent.samples if one["user_id"] == user]
        found = [(one.step, one.tensor_proto.string_val[0].decode()) for one in events.Tensors(tag)]
        assert found == written


def test_wandb_offline(sent: Sent) -> None:
    wandb = pytest.importorskip("wandb")
    assert wandb.run is None  # the next run of this process is one of its own
    (run,) = (sent.home / "wandb").glob("offline-run-*")
    assert sent.place("wandb") == f"wandb: offline; to send it: wandb sync {run}"
    tables = [json.loads(path.read_text()) for path in sorted((run / "files/media/table").glob("samples_*.json"))]
    cells = sorted((tuple(row) for table in tables for row in table["data"]), key=str)
    assert tables[0]["columns"] == ["step", "user_id", "prompt", "response"]
    assert cells == sorted(
        ((one["step"], one["user_id"], one["prompt"], one["response"]) for one in sent.samples), key=str
    )
    (log,) = run.glob("run-*.wandb")
    rows = [{"/".join([*one.nested_key]) or one.key: json.loads(one.value_json) for one in row} for row in history(log)]
    losses = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, pytest.approx(loss)) for step, loss in sent.losses]


def history(log: Path) -> Iterator[Any]:
    """The items of each step in an offline run's log: records in blocks of 32 KiB, as LevelDB writes them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = log.read_bytes(), 7, b""  # behind the header
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            found = Record.FromString(record)
            record = b""
            if found.HasField("history"):
                yield found.history.item


def test_mlflow(sent: Sent) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient, artifacts

    client = MlflowClient()
    experiment = client.get_experiment_by_name("prlhf")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("run ")
    assert (
        sent.place("mlflow")
        == f"mlflow: mlflow ui --backend-store-uri sqlite:///{sent.home}/mlflow.db, run {run.info.run_id}"
    )
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == sent.losses
    table = artifacts.load_dict(f"{run.info.artifact_uri}/samples.json")
    assert table["columns"] == ["step", "user_id", "prompt", "response"]
    assert [row[3] for row in table["data"]] == [one["response"] for one in sent.samples]


def test_trackio(sent: Sent) -> None:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    project = sent.place("trackio").removeprefix("trackio: trackio show --project ")
    (run,) = SQLiteStorage.get_runs(project)
    assert run.startswith("run 2")
    logs = SQLiteStorage.get_logs(project, run)
    losses = [(one["train/global_step"], one["train/loss"]) for one in logs if "train/loss" in one]
    assert losses == [(step, pytest.approx(loss)) for step, loss in sent.losses]
    tables = [one["samples"]["_value"] for one in logs if "samples" in one]
    assert [row["response"] for table in tables for row in table] == [one["response"] for one in sent.samples]


def test_what_trackers_print_stays_off_standard_output(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is for results."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    class Loud(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            print("loud")

    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["clearml"])
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "clearml", Loud)
    train(make_config(tmp_path / "run", report_to="clearml", max_steps=1))
    said = capsys.readouterr()
    assert "loud" in said.err
    assert "loud" not in said.out
