"""Rounds on real worker processes: each writes its share, and all train on the same candidates as one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from killed import Killed, StopAt
from test_workers import run_workers

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.errors import Interrupted, OnAll, PrlhfError
from prlhf.model import workers
from prlhf.online.author import Author
from prlhf.online.candidates import Candidate, in_order, path_of, read_candidates
from prlhf.progress import SILENT, Progress
from prlhf.train import metrics
from prlhf.train.loop import Stop
from prlhf.train.run import learn, train

MakeConfig = Callable[..., Any]
ROUNDS = (1, 2, 3)
OPTIONS: dict[str, Any] = {
    "rounds": len(ROUNDS), "round_steps": 2, "round_prompts": 5, "candidates": 3, "max_new_tokens": 6, "save_every": 3,
    "batch_size": 3, "lr": 1e-3, "user_lr": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> dict[str, TrainConfig]:
    """Runs by name, and one process's folder for each of them."""
    folder = tmp_path_factory.mktemp("runs")
    train(make_config(folder / "reward", objective="rm", max_steps=3))
    changes = {name: {"objective": name} for name in ("online-dpo", "grpo", "rloo")}
    changes["one prompt"] = {"objective": "online-dpo", "round_prompts": 1}
    about = {name: OPTIONS | {"reward": folder / "reward"} | some for name, some in changes.items()}
    return {name: make_config(folder / name, **some) for name, some in about.items()}


@pytest.fixture(scope="module")
def one(configs: dict[str, TrainConfig]) -> Path:
    """The folder of each run's folder, all in one process."""
    for config in configs.values():
        train(config)
    return next(iter(configs.values())).folder.parent


@pytest.fixture(scope="module")
def two(configs: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each run: in `whole/RANK` on two workers; `moved/RANK` was stopped and has gone on elsewhere.

    `halfway/0` has what a run has elsewhere before it goes on.
    """
    folder = tmp_path_factory.mktemp("two")
    run_workers(2, learn_all, configs, folder)
    return folder


def learn_all(rank: int, configs: dict[str, TrainConfig], folder: Path) -> None:
    for name, config in configs.items():
        learn_in(folder / name / "whole", config)
        learn_in(folder / name / "before", config, stop_at=4)
        workers.gather(None)
        take_over(folder / name / "before", folder / name / "moved", rank)
        take_over(folder / name / "before", folder / name / "halfway", rank)
        learn_in(folder / name / "moved", config, resume=True)


def learn_in(folder: Path, config: TrainConfig, resume: bool = False, stop_at: int = 0) -> None:
    """Train in a folder of the worker's own, as Ray's workers do, and note who was written for."""
    own, write = config.model_copy(update={"out": folder / str(workers.rank())}), Author.write
    folder.mkdir(parents=True, exist_ok=True)

    def noted(self: Any, requests: Any, number: int, *about: Any) -> Any:
        with (folder / f"asked-{workers.rank()}.txt").open("a") as file:
            file.writelines(f"{number} {one.prompt_id} {one.user_id}\n" for one in requests)
        return write(self, requests, number, *about)

    progress: Progress = StopAt(stop_at) if stop_at else SILENT
    with pytest.MonkeyPatch.context() as patch, nullcontext() if not stop_at else pytest.raises(Killed):
        patch.setattr(Author, "write", noted)
        learn(own, read_prepared(Path(config.dataset)), resume, progress)


def take_over(before: Path, after: Path, rank: int) -> None:
    """What a new machine gets from the storage: the first worker's checkpoint, with the random states of all."""
    name = "checkpoints/checkpoint-3"
    shutil.copytree(before / "0" / name, after / str(rank) / name)
    shutil.copyfile(before / "1" / name / "rng_state_1.pth", after / str(rank) / name / "rng_state_1.pth")
    shutil.copyfile(before / "0/recipe.yaml", after / str(rank) / "recipe.yaml")


def rounds_of(run: Path) -> list[Candidate]:
    return [row for number in ROUNDS for row in read_candidates(path_of(run, number))]


def assert_same(run: Path, expected: Path, within: float = 1e-4) -> None:
    for found, wanted in zip(rounds_of(run), rounds_of(expected), strict=True):
        for name, value in asdict(wanted).items():
            given = getattr(found, name)
            near = isinstance(value, float) or name.startswith("token_")
            assert given == (pytest.approx(value, abs=within, nan_ok=True) if near else value), (found.group, name)
    one, two = (metrics.read(folder / "metrics.jsonl") for folder in (expected, run))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for wanted, found in zip(one, two, strict=True):
        for name in ("loss", "grad_norm"):
            if name in wanted:
                assert found[name] == pytest.approx(wanted[name], abs=within), (found["step"], name)
    assert (run / "model").is_dir()


def asked(folder: Path) -> list[list[str]]:
    """Whom each worker was asked to write for, as lines: round, prompt, user."""
    paths = (folder / f"asked-{rank}.txt" for rank in (0, 1))
    return [path.read_text().splitlines() if path.exists() else [] for path in paths]


@pytest.mark.parametrize("objective", ["online-dpo", "grpo", "rloo"])
def test_two_workers_follow_one(one: Path, two: Path, objective: str) -> None:
    assert_same(two / objective / "whole/0", one / objective)


@pytest.mark.parametrize("objective", ["online-dpo", "grpo", "rloo"])
def test_each_worker_writes_its_share(two: Path, objective: str) -> None:
    """Of five prompts in each of three rounds, and the first worker alone keeps the candidates."""
    first, second = asked(two / objective / "whole")
    assert (len(first), len(second)) == (9, 6)
    rows = {n: read_candidates(path_of(two / objective / "whole/0", n)) for n in ROUNDS}
    assert {*first, *second} == {f"{n} {row.prompt_id} {row.user_id}" for n in ROUNDS for row in rows[n]}
    assert not {*first} & {*second}
    assert not (two / objective / "whole/1/candidates").exists()


@pytest.mark.parametrize("objective", ["online-dpo", "grpo", "rloo"])
def test_machines_that_have_only_a_checkpoint_take_over(two: Path, objective: str) -> None:
    """From the middle of the second round, whose candidates are not written again."""
    assert_same(two / objective / "moved/0", two / objective / "whole/0", within=1e-6)
    assert {line[0] for some in asked(two / objective / "moved") for line in some} == {"3"}


def test_one_process_takes_over(one: Path, two: Path, configs: dict[str, TrainConfig]) -> None:
    """And needs the earlier round for replay, which only the checkpoint has."""
    train(configs["online-dpo"].model_copy(update={"out": two / "online-dpo/halfway/0"}), resume=True)
    assert_same(two / "online-dpo/halfway/0", one / "online-dpo")


def test_more_workers_than_prompts(one: Path, two: Path) -> None:
    """The second worker has nothing to write, and trains on what the first has written."""
    assert [len(some) for some in asked(two / "one prompt/whole")] == [3, 0]
    assert_same(two / "one prompt/whole/0", one / "one prompt")


# ---- what ends a run ends it on all workers ----


def fail_in(rank: int, config: TrainConfig, folder: Path) -> None:
    own, data = config.model_copy(update={"out": folder / str(rank)}), read_prepared(Path(config.dataset))
    stop = Stop()
    stop.asked = rank == 0  # as on Ray, only the first one knows
    with pytest.raises(Interrupted, match="stopped while round 1 was written"):
        learn(own, data, False, stop=stop)
    wrong = own.model_copy(update={"reward": folder / f"no-reward-{rank}" if rank else config.reward})
    with pytest.raises(OnAll, match="no-reward-1"):
        learn(wrong, data, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prlhf.online.author.Author.write", _failing if rank else Author.write)
        with pytest.raises(OnAll, match="the second worker's reward"):
            learn(own, data, False)


def _failing(*_: Any) -> Any:
    raise PrlhfError("the second worker's reward is not finite")


def test_workers_end_together(tmp_path: Path, configs: dict[str, TrainConfig]) -> None:
    """A stop that only the first worker knows of; a reward that the second one lacks, or cannot compute."""
    run_workers(2, fail_in, configs["online-dpo"], tmp_path)


def test_candidates_have_one_order() -> None:
    one = Candidate(0, "p", "p", "ann", 1, 0, "r", 1, True, 0.0)
    rows = [one, replace(one, candidate=1), replace(one, prompt_id="q"), replace(one, user_index=2, prompt_id="a")]
    assert in_order(rows[::-1]) == in_order(rows[::2] + rows[1::2]) == rows
