"""Training on real Ray workers, by the command: as in one process, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from prlhf.errors import PrlhfError
from prlhf.online.candidates import path_of, read_candidates
from prlhf.train import metrics
from prlhf.train.checkpoints import fault
from prlhf.train.on_ray import check_share
from prlhf.train.run import train
from prlhf.train.storage import Store, fetch_newest, saved_cluster

MakeConfig = Callable[..., Any]
STEPS = 40
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS, "save_every": 4, "eval_every": 20, "batch_size": 4, "lr": 1e-3, "user_lr": 1e-2,
    "stop_metric": "margin_mean",
}  # fmt: skip


def recipe_of(folder: Path, make_config: MakeConfig, **changes: Any) -> Path:
    values = make_config(folder, **(OPTIONS | changes)).model_dump(mode="json", exclude={"out"})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.yaml").write_text(yaml.safe_dump({"train": values}))
    return folder / "given.yaml"


def command(*args: Any) -> list[str]:
    return [sys.executable, "-m", "prlhf_cli.main", "train", *map(str, args), "--json"]


def started(*args: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def steps_of(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in metrics.read(folder / "metrics.jsonl") if "loss" in row}


def assert_same_steps(folder: Path, expected: Path, within: float) -> None:
    found, wanted = steps_of(folder), steps_of(expected)
    assert list(found) == list(wanted) == list(range(1, STEPS + 1))
    for step in wanted:
        for name in ("loss", "margin", "grad_norm"):
            assert found[step][name] == pytest.approx(wanted[step][name], abs=within), (step, name)
    evaluations = [json.loads((f / "results.json").read_text())["eval"] for f in (folder, expected)]
    assert evaluations[0]["margin_mean"] == pytest.approx(evaluations[1]["margin_mean"], abs=10 * within)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run on two workers, its output beside it."""
    folder = tmp_path_factory.mktemp("ray")
    recipe = recipe_of(folder / "recipe", make_config)
    out, err = ended(started("--recipe", recipe, "--workers", 2, "--out", folder / "run"))
    (folder / "out.txt").write_text(out)
    (folder / "err.txt").write_text(err)
    return folder / "run"


def test_two_ray_workers_follow_one_process(undisturbed: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(tmp_path / "one", **OPTIONS))
    assert_same_steps(undisturbed, tmp_path / "one", 1e-4)


def test_the_command_is_quiet_and_leaves_a_run_like_any_other(undisturbed: Path) -> None:
    result = json.loads((undisturbed.parent / "out.txt").read_text())  # the summary and nothing else
    assert result["steps"] == STEPS
    assert result["run"] == str(undisturbed)
    errors = (undisturbed.parent / "err.txt").read_text()
    assert f"{STEPS}/{STEPS}" in errors
    assert "ray" not in errors.lower()
    assert len(errors.splitlines()) <= 5
    names = ["metrics.jsonl", "model", "prlhf.json", "recipe.yaml", "report.html", "results.json"]
    assert sorted(p.name for p in undisturbed.iterdir()) == names
    assert saved_cluster(undisturbed)["workers"] == 2
    assert json.loads((undisturbed / "results.json").read_text())["run"] == str(undisturbed)
    assert "prlhf-worker" not in (undisturbed / "model/prlhf.json").read_text()  # a place that is gone


def test_a_finished_run_is_told_as_finished(undisturbed: Path) -> None:
    out, err = ended(started("--resume", "--out", undisturbed))
    assert "already finished" in err
    assert json.loads(out)["steps"] == STEPS


def test_too_few_comparisons_for_the_workers(make_config: MakeConfig, tmp_path: Path) -> None:
    from prlhf.config import ClusterConfig

    with pytest.raises(PrlhfError, match="batch_size = 2 is less than workers = 3"):
        check_share(make_config(tmp_path), ClusterConfig(workers=3))
    check_share(make_config(tmp_path), ClusterConfig(workers=2))


@pytest.mark.slow
def test_rounds_on_workers_follow_one_process(make_config: MakeConfig, tmp_path: Path) -> None:
    """The command leaves the candidates of all rounds in the run, as one process does, and nothing of the workers."""
    train(make_config(tmp_path / "reward", objective="rm", max_steps=3))
    options: dict[str, Any] = {
        "objective": "online-dpo", "reward": tmp_path / "reward", "rounds": 2, "round_steps": 2, "round_prompts": 6,
        "candidates": 3, "max_new_tokens": 6, "batch_size": 4, "lr": 1e-3, "user_lr": 1e-2,
    }  # fmt: skip
    train(make_config(tmp_path / "one", **options))
    values = make_config(tmp_path / "two", **options).model_dump(mode="json", exclude={"out"})
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({"train": values}))
    ended(started("--recipe", tmp_path / "given.yaml", "--workers", 2, "--out", tmp_path / "two"))
    for number in (1, 2):
        one, two = (read_candidates(path_of(tmp_path / run, number)) for run in ("one", "two"))
        assert [(row.group, row.response) for row in two] == [(row.group, row.response) for row in one]
        assert [row.reward for row in two] == pytest.approx([row.reward for row in one], abs=1e-4)
    one_step, two_step = (steps_of(tmp_path / run) for run in ("one", "two"))
    losses = [pytest.approx(row["loss"], abs=1e-4) for row in one_step.values()]
    assert [row["loss"] for row in two_step.values()] == losses
    assert not (tmp_path / "two/checkpoints").exists()


# ---- what is killed ----


def wait_for_checkpoint(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Whole, that is: its folder appears before its files have all been copied."""
    until = time.monotonic() + 120
    while not any(fault(path) == "" for path in (folder / "checkpoints").glob(f"checkpoint-*-{step}")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_now() -> list[psutil.Process]:
    """This test session's training workers; others may be at work on the machine."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        try:
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []) and (
                process.environ().get("PRLHF_CACHE") == os.environ["PRLHF_CACHE"]
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_costs_no_more_than_the_steps_since_its_checkpoint(
    undisturbed: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, make_config)
    process = started("--recipe", recipe, "--workers", 2, "--out", tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", 8, process)
    assert len(workers_now()) == 2
    workers_now()[-1].send_signal(signal.SIGKILL)
    _, err = ended(process)
    assert "resuming from step" in err
    assert_same_steps(tmp_path / "run", undisturbed, 1e-6)


@pytest.mark.slow
def test_a_killed_driver_and_a_damaged_checkpoint(undisturbed: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, make_config)
    process = started("--recipe", recipe, "--workers", 2, "--out", tmp_path / "run")
    wait_for_checkpoint(tmp_path / "run", 12, process)
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while workers_now():  # they must not outlive who started them
        assert time.monotonic() < until
        time.sleep(0.2)
    store = Store(None, tmp_path / "run")
    there = [tmp_path / "run/checkpoints" / name for name in store.checkpoints()]
    faults = {path: fault(path) for path in there}
    assert "" in faults.values(), faults
    newest = next(path for path in there if faults[path] == "")  # the kill may have come in the midst of a later one
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    _, err = ended(started("--resume", "--out", tmp_path / "run"))
    assert f"{newest.name} is damaged (adapter_model.safetensors has changed)" in err
    assert_same_steps(tmp_path / "run", undisturbed, 1e-6)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_run_goes_on_elsewhere(undisturbed: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """On a storage of its own; resumed from a folder that knows nothing of the run, as on another machine."""
    recipe, storage = recipe_of(tmp_path, make_config), f"file://{tmp_path}/storage"
    process = started("--recipe", recipe, "--workers", 2, "--out", tmp_path / "here/run", "--storage", storage)
    wait_for_checkpoint(tmp_path / "storage/run", 4, process)
    process.send_signal(signal.SIGINT)
    _, err = ended(process, 130)
    assert "--resume" in err
    assert workers_now() == []
    ended(started("--resume", "--out", tmp_path / "there/run", "--storage", storage))
    assert_same_steps(tmp_path / "there/run", undisturbed, 1e-6)


@pytest.mark.slow
def test_a_node_dies_and_another_takes_its_place(undisturbed: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """Two Ray nodes of one CPU each on this machine, so a worker on each; one is killed, and a new one comes."""
    from ray.cluster_utils import Cluster

    recipe = recipe_of(tmp_path, make_config)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = started(
            "--recipe", recipe, "--workers", 2, "--ray-address", cluster.address, "--storage", tmp_path / "storage",
            "--out", tmp_path / "run",
        )  # fmt: skip
        wait_for_checkpoint(tmp_path / "storage/run", 8, process)
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        _, err = ended(process)
    finally:
        cluster.shutdown()
    assert "resuming from step" in err
    assert_same_steps(tmp_path / "run", undisturbed, 1e-6)


def test_a_half_written_checkpoint_on_the_storage_was_never_there(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/checkpoint-7-4").mkdir(parents=True)
    (tmp_path / "run/checkpoints/checkpoint-7-4/state.json").write_text("{}")
    assert fetch_newest(Store(None, tmp_path / "run"), tmp_path / "worker", _Loud()) == 0  # type: ignore[arg-type]


class _Loud:
    def note(self, line: str) -> None:
        pytest.fail(line)
