"""A run stopped at any point and resumed is the run that was never stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killed import Killed, StopAt
from losses import numbers

from prlhf.dataset import Prepared, read_prepared, write_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.model.encoding import Encoded
from prlhf.model.rewards import Reference
from prlhf.progress import Silent
from prlhf.train import metrics, run
from prlhf.train.checkpoints import newest_checkpoint
from prlhf.train.run import train

MakeConfig = Callable[..., Any]

# three optimizer steps an epoch; dropout, so that random states matter; evaluations beside the checkpoints
OPTIONS: dict[str, Any] = {
    "accumulation": 2, "max_steps": 8, "save_every": 3, "eval_every": 2, "lora_dropout": 0.2, "schedule": "cosine",
}  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(folder, **OPTIONS))
    return folder


def killed(folder: Path, make_config: MakeConfig, at: int, **options: Any) -> Any:
    config = make_config(folder, **(OPTIONS | options))
    with pytest.raises(Killed):
        train(config, progress=StopAt(at))
    return config


def assert_same_run(folder: Path, expected: Path) -> None:
    """To the last bit: what is random is restored, and the reference cache keeps how a value was rounded."""
    assert metrics.read(folder / "metrics.jsonl") == metrics.read(expected / "metrics.jsonl")
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (folder / "model" / name).read_bytes() == (expected / "model" / name).read_bytes()
    first, second = (numbers(json.loads((f / "results.json").read_text())) for f in (folder, expected))
    same = {"run": "", "reference": {}}  # who goes on finds more of it on disk
    assert first | same == second | same


@pytest.mark.parametrize("at", [1, 4, 7])
def test_resumed_is_uninterrupted(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, at: int) -> None:
    """Killed before the first checkpoint; after one; and after more than are kept."""
    config = killed(tmp_path / "run", make_config, at)
    assert not (tmp_path / "run/model").exists()
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


class OneByOne(Reference):
    """Asks for one comparison at a time, so that its values do not depend on which were asked for together."""

    def log_probs(self, batch: Sequence[Encoded]) -> torch.Tensor:
        return torch.stack([super(OneByOne, self).log_probs([e]) for e in batch], 1).flatten()


def test_without_the_reference_cache(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference's rounding out of the way nothing differs: order, dropout, optimizer, schedule."""
    monkeypatch.setattr(run, "Reference", OneByOne)
    train(make_config(tmp_path / "whole", reference_cache=False, **OPTIONS))
    train(killed(tmp_path / "run", make_config, at=4, reference_cache=False), resume=True)
    assert metrics.read(tmp_path / "run/metrics.jsonl") == metrics.read(tmp_path / "whole/metrics.jsonl")
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()


def test_grouped_by_prompt(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path) -> None:
    """In the second epoch of an order of its own."""
    train(make_config(tmp_path / "whole", group_by_prompt=True, **OPTIONS))
    train(killed(tmp_path / "run", make_config, at=5, group_by_prompt=True), resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert metrics.read(tmp_path / "run/metrics.jsonl") != metrics.read(uninterrupted / "metrics.jsonl")


@pytest.mark.parametrize("changes", [{"user_in": "adapter"}, {"user_in": "both", "user_model": "cluster"}])
def test_gates(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, changes: dict[str, str]) -> None:
    train(make_config(tmp_path / "whole", **OPTIONS, **changes))
    train(killed(tmp_path / "run", make_config, at=5, **changes), resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert metrics.read(tmp_path / "run/metrics.jsonl") != metrics.read(uninterrupted / "metrics.jsonl")


def test_killed_twice(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path) -> None:
    config = killed(tmp_path / "run", make_config, at=4)
    with pytest.raises(Killed):
        train(config, resume=True, progress=StopAt(4))
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_killed_between_training_and_the_model(
    tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "run", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_the_last_evaluation_is_logged_once(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path / "run", max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    train(config, resume=True)
    assert [row["step"] for row in metrics.read(tmp_path / "run/metrics.jsonl") if "eval" in row] == [2]


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("name", ["state.json", "adapter_model.safetensors", "optimizer.pt", "sha256.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, name: str, damage: str
) -> None:
    config = killed(tmp_path / "run", make_config, at=7)
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.name == "checkpoint-6"
    file, notes = newest / name, Notes()
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        file.write_text('["of another kind"]')
    else:
        file.write_bytes(file.read_bytes()[:10])
    older = newest_checkpoint(tmp_path / "run", notes)
    assert older is not None
    assert older.name == "checkpoint-3"
    if (name, damage) == ("sha256.json", "missing"):  # as when the kill came before it was whole
        assert notes.lines == []
    else:
        assert re.search(rf"warning: .*checkpoint-6 is damaged \({name}", notes.lines[0])
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_folder_in_place_of_a_checkpoint_s_file(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path) -> None:
    """The damaged checkpoint is written again, and must not be written into."""
    config = killed(tmp_path / "run", make_config, at=7)
    file = tmp_path / "run/checkpoints/checkpoint-6/scheduler.pt"
    file.unlink()
    file.mkdir()
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_metrics_line_cut_short_is_logged_again(tmp_path: Path, make_config: MakeConfig, uninterrupted: Path) -> None:
    config = killed(tmp_path / "run", make_config, at=5)
    path = tmp_path / "run/metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    config = killed(tmp_path / "run", make_config, at=4)
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    (checkpoint / "state.json").unlink()
    sums = json.loads((checkpoint / "sha256.json").read_text())
    del sums["state.json"]
    (checkpoint / "sha256.json").write_text(json.dumps(sums))
    before = snapshot(tmp_path / "run")
    with pytest.raises(PrlhfError, match=r"checkpoint-3 was written by an earlier version .*; train again into a new"):
        train(config, resume=True)
    assert snapshot(tmp_path / "run") == before


def test_full_finetuning_resumes_too(tmp_path: Path, make_config: MakeConfig) -> None:
    """The reference is the base's, taken before the checkpoint's weights are put on it."""
    options = OPTIONS | {"full_finetune": True, "lr": 1e-3, "lora_dropout": 0.0}
    train(make_config(tmp_path / "whole", **options))
    config = killed(tmp_path / "run", make_config, at=5, **options)
    train(config, resume=True)
    assert metrics.read(tmp_path / "run/metrics.jsonl") == metrics.read(tmp_path / "whole/metrics.jsonl")


# ---- Ctrl-C ----


@pytest.mark.parametrize(("at", "step"), [(2, 3), (3, 4), (8, 8)])
def test_ctrl_c_leaves_a_run_that_goes_on(
    tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, at: int, step: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(Interrupted, match=rf"stopped after step {step}; .*--resume --out {tmp_path}/run"):
        train(config, progress=StopAt(at, lambda: signal.raise_signal(signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is handler
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert found.name == f"checkpoint-{step}"
    train(config, resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, make_config: MakeConfig) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_config(tmp_path / "run", **OPTIONS), progress=StopAt(2, twice))


# ---- what is refused ----


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_not_overwritten(tmp_path: Path, make_config: MakeConfig) -> None:
    config = killed(tmp_path / "run", make_config, at=4)
    before = snapshot(tmp_path / "run")
    with pytest.raises(PrlhfError, match=r"already holds a run; continue with --resume"):
        train(config)
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.25}, r"was started with alpha = 0.5, not 0.25"),
        ({"max_steps": 9}, r"was started with max_steps = 8, not 9"),
        ({"user_model": "cluster"}, r"user_model = individual, not cluster"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(
    tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, finished: bool, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    if not finished:
        shutil.rmtree(folder / "model")
    before = snapshot(folder)
    with pytest.raises(PrlhfError, match=message):
        train(make_config(folder, **(OPTIONS | changes)), resume=True)
    assert snapshot(folder) == before


def test_what_may_change_may_change(tmp_path: Path, make_config: MakeConfig) -> None:
    config = killed(tmp_path / "run", make_config, at=4)
    train(config.model_copy(update={"save_every": 1, "eval_limit": 3, "keep_checkpoints": 1}), resume=True)
    assert (tmp_path / "run/model/prlhf.json").exists()


def test_changed_data_is_refused(
    tmp_path: Path, make_config: MakeConfig, make_prepared: Callable[[Path], Path]
) -> None:
    folder = make_prepared(tmp_path / "data")
    config = killed(tmp_path / "run", make_config, at=4, dataset=str(folder))
    data = read_prepared(folder)
    write_prepared(folder, Prepared(data.train[1:], data.eval, data.users, data.manifest))
    with pytest.raises(PrlhfError, match=r"the data in .* changed since"):
        train(config, resume=True)


def test_nothing_to_resume(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match=r"holds no run to resume; start it without --resume"):
        train(make_config(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_again(make_config: MakeConfig, uninterrupted: Path) -> None:
    before = snapshot(uninterrupted)
    results = train(make_config(uninterrupted, **OPTIONS), resume=True)
    assert results == json.loads((uninterrupted / "results.json").read_text())
    assert snapshot(uninterrupted) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * 5000])
def test_damaged_results_of_a_finished_run_are_one_line(
    tmp_path: Path, make_config: MakeConfig, uninterrupted: Path, content: bytes
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run/results.json").write_bytes(content)
    before = snapshot(tmp_path / "run")
    with pytest.raises(PrlhfError, match=r"results.json.*; its model is there: use it, or train again"):
        train(make_config(tmp_path / "run", **OPTIONS), resume=True)
    assert snapshot(tmp_path / "run") == before


def test_a_damaged_recipe_is_one_line(tmp_path: Path, make_config: MakeConfig) -> None:
    config = killed(tmp_path / "run", make_config, at=4)
    (tmp_path / "run/recipe.yaml").write_text("train: {alpha: [")
    with pytest.raises(PrlhfError, match="cannot read recipe"):
        train(config, resume=True)


# ---- a real process ----

# many steps, to be hit in the middle; small ones, so that rounding is not blown up over so many
LONG: dict[str, Any] = OPTIONS | {"max_steps": 150, "save_every": 5, "eval_every": 50, "lr": 1e-4, "user_lr": 1e-3}


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "prlhf_cli.main", "train", "--out", str(folder), *more]


def start(folder: Path, recipe: Path) -> subprocess.Popen[bytes]:
    """Wait until a dozen steps are logged."""
    process = subprocess.Popen(command(folder, "--recipe", str(recipe)), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(metrics.read(folder / "metrics.jsonl")) < 12:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.fixture
def recipe(tmp_path: Path, make_config: MakeConfig) -> Path:
    values = make_config(tmp_path, **LONG).model_dump(mode="json", exclude={"out"})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"train": values}))
    return tmp_path / "r.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_real_process_stopped_and_resumed(
    tmp_path: Path, make_config: MakeConfig, recipe: Path, sent: signal.Signals, code: int
) -> None:
    process = start(tmp_path / "run", recipe)
    os.kill(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if sent == signal.SIGINT:
        assert "interrupted: stopped after step" in errors.decode()
    assert not (tmp_path / "run/model").exists()
    refused = subprocess.run(
        command(tmp_path / "run", "--recipe", str(recipe)), check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr
    subprocess.run(command(tmp_path / "run", "--resume"), check=True, capture_output=True)
    train(make_config(tmp_path / "whole", **LONG))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
