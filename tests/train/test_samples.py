"""Samples during a training show what the model writes, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prlhf.config import ClusterConfig, GenerateConfig
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.run import generate
from prlhf.model.checkpoint import build_policy
from prlhf.progress import Silent
from prlhf.responses import read_responses
from prlhf.start_training import start
from prlhf.train import loop, metrics, samples
from prlhf.train.run import train

MakeConfig = Callable[..., Any]

# dropout, so that random states matter; samples at other steps than checkpoints and evaluations
OPTIONS: dict[str, Any] = {"max_steps": 7, "save_every": 3, "eval_every": 4, "lora_dropout": 0.2}
SAMPLING = {"sample_every": 2, "sample_users": 2, "sample_prompts": 2}


class Heard(Silent):
    """Notes what is said; dies when the loss of step `dies` has been logged."""

    def __init__(self, dies: int = 0) -> None:
        self.lines: list[str] = []
        self.left = dies

    def note(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, steps: int = 1, **values: float) -> None:
        self.left -= "loss" in values
        if self.left == 0 and "loss" in values:
            raise ZeroDivisionError


def rows_of(run: Path) -> list[dict[str, Any]]:
    return metrics.read(run / "samples.jsonl")


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("changes", [{}, {"user_in": "both", "user_model": "cluster"}])
def test_samples_change_nothing_and_survive_a_kill(
    tmp_path: Path, make_config: MakeConfig, changes: dict[str, str]
) -> None:
    """To the last bit, without samples, with them, and stopped between two samples and resumed."""
    train(make_config(tmp_path / "without", **OPTIONS, **changes))
    heard = Heard()
    train(make_config(tmp_path / "with", **OPTIONS, **SAMPLING, **changes), progress=heard)
    assert_same_weights(tmp_path / "with", tmp_path / "without")
    config = make_config(tmp_path / "killed", **OPTIONS, **SAMPLING, **changes)
    with pytest.raises(ZeroDivisionError):
        train(config, progress=Heard(dies=5))
    assert [row["step"] for row in rows_of(tmp_path / "killed")][-1] == 4
    train(config, resume=True)
    assert_same_weights(tmp_path / "killed", tmp_path / "without")
    assert (tmp_path / "killed/samples.jsonl").read_bytes() == (tmp_path / "with/samples.jsonl").read_bytes()
    rows = rows_of(tmp_path / "with")
    assert [row["step"] for row in rows] == [step for step in (2, 4, 6, 7) for _ in range(6)]
    assert [row["user_id"] for row in rows[:6]] == ["ann", "bob", "generic"] * 2
    assert len({row["prompt_id"] for row in rows}) == 2
    assert [line for line in heard.lines if line.startswith("step 2, ")] == [samples.shown(row) for row in rows[:6]]
    assert not (tmp_path / "without/samples.jsonl").exists()


def test_samples_are_what_generate_writes(tmp_path: Path, make_config: MakeConfig) -> None:
    """The last ones, and of a user who was in no recent batch: their row is read as AdamW has it by now."""
    run = tmp_path / "run"
    train(make_config(run, max_steps=5, sample_every=3, sample_prompts=1, save_every=50))
    last = {row["user_id"]: row for row in rows_of(run) if row["step"] == 5}
    out = tmp_path / "responses.jsonl"
    generate(run, GenerateConfig(out=out, temperature=0, max_new_tokens=32, max_prompts=1, device="cpu"))
    written = {row.user_id: row for row in read_responses(out)}
    assert last.keys() == written.keys() == {"ann", "bob", "cat", "generic"}
    for user, row in last.items():
        assert (row["prompt"], row["response"]) == (written[user].prompt, written[user].response)
        assert (row["response_tokens"], row["finish_reason"]) == (
            written[user].response_tokens, written[user].finish_reason,
        )  # fmt: skip


def test_without_users_there_is_one_sample_per_prompt(tmp_path: Path, make_config: MakeConfig) -> None:
    train(make_config(tmp_path / "run", objective="sft", max_steps=1, **SAMPLING))
    assert [row["user_id"] for row in rows_of(tmp_path / "run")] == ["generic"] * 2


def test_prompts_without_room_are_passed_over(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    policy = build_policy(make_config(tmp_path, **SAMPLING), ["ann", "bob", "cat"], {})
    rows = read_prepared(prepared).eval
    long = replace(rows[0], prompt="word " * 200)
    found = samples.Samples(policy, [long, *rows])
    assert {one.prompt for one in found.requests} == set(list(dict.fromkeys(row.prompt for row in rows))[:2])
    with pytest.raises(PrlhfError, match="no prompt of the data has room for a sample of 32 tokens"):
        samples.Samples(policy, [long])


def test_trackers_get_the_texts(tmp_path: Path, make_config: MakeConfig) -> None:
    """In the event files of tensorboardX, which are not compressed."""
    config = make_config(tmp_path / "run", max_steps=1, report_to="tensorboard", **SAMPLING)
    train(config)
    events = b"".join(path.read_bytes() for path in tmp_path.rglob("events.out*"))
    for row in rows_of(tmp_path / "run"):
        assert f"samples/{row['user_id']}/{row['prompt_id']}".encode() in events
        assert row["response"].encode() in events


def test_refused_where_no_worker_has_the_whole_model(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match="sample_every = 2 does not go with parallel = fsdp") as error:
        start(make_config(tmp_path / "run", **SAMPLING), ClusterConfig(workers=2, parallel="fsdp"))
    assert error.value.hint == "leave sample_every out, or set parallel to ddp"
    assert not (tmp_path / "run").exists()


def test_the_users_rows_are_as_before(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that missed steps is read with them, and then has missed them again."""
    seen: list[bool] = []
    original = loop.Loop.write_samples

    def compared(self: loop.Loop, found: Any) -> None:
        before, moments = self.model.users.state_dict(), self.optimizer.state_dict()
        before = {name: value.clone() for name, value in before.items()}
        original(self, found)
        after, left = self.model.users.state_dict(), self.optimizer.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        for number, state in moments["state"].items():
            assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(left["state"][number][k])) for k in state)
        seen.append(True)

    monkeypatch.setattr(loop.Loop, "write_samples", compared)
    train(make_config(tmp_path / "run", max_steps=4, sample_every=1, batch_size=1))
    assert len(seen) == 4
