"""Rounds of GRPO and RLOO: what is measured and trained on, and stopped runs that continue as if they were not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loop_of, moved_policy

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.dataset import read_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.best_of import BestOf
from prlhf.generate.requests import WriteRequest
from prlhf.model.readings import Reading, readings_of
from prlhf.online.author import as_base, reading_of
from prlhf.online.candidates import Candidate, groups_of, path_of, read_candidates
from prlhf.start_training import start
from prlhf.train import metrics
from prlhf.train.policy_gradient import PolicyGradientLoop, advantages_of, group_rewards
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
OPTIONS: dict[str, Any] = {
    "objective": "grpo", "rounds": 2, "round_steps": 3, "round_prompts": 6, "candidates": 3, "max_new_tokens": 6,
    "save_every": 2, "batch_size": 2, "schedule": "cosine", "beta": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    train(make_config(folder, objective="rm", max_steps=3))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, reward: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(make_config(folder, reward=reward, **OPTIONS))
    return folder


# ---- log-probs of tokens ----


@pytest.mark.parametrize(
    "changes", [{}, {"user_in": "adapter"}, {"user_in": "both"}, {"prefix_tree": False}, {"pack_tokens": 32}]
)
def test_log_probs_of_tokens_add_up_to_those_of_responses(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, changes: dict[str, Any]
) -> None:
    """As each user, gates included, and under the base; in trees and in padded rows."""
    rows = read_prepared(prepared).train[:5]
    loop = loop_of(moved_policy(make_config(tmp_path / "run", **changes)), rows)
    data = loop.train_set.encoded
    readings = readings_of(data, [row.user_index for row in data])
    plain = [reading._replace(user_index=0) for reading in readings]
    loop.model.eval()
    with torch.no_grad():
        own, base = loop.engine.by_token(readings), loop.engine.by_token(plain, base=True)
        torch.testing.assert_close(own.sum(1), loop.engine.values(readings), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(base.sum(1), loop.engine.reference(plain), atol=1e-4, rtol=1e-4)
    lengths = [len(reading.response) for reading in readings]
    assert [int((row != 0).sum()) for row in own] == lengths
    assert not torch.allclose(own, base, atol=1e-2)


def test_each_token_has_its_own_place(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    """A response that is cut after n tokens has the first n log-probs of the whole one."""
    loop = loop_of(moved_policy(make_config(tmp_path / "run")), read_prepared(prepared).train[:2])
    first = loop.train_set.encoded[0]
    whole = Reading(first.user_index, tuple(first.prompt), tuple(first.chosen))
    loop.model.eval()
    with torch.no_grad():
        found = loop.engine.by_token([whole, whole._replace(response=whole.response[:2])])
    torch.testing.assert_close(found[1, :2], found[0, :2], atol=1e-5, rtol=1e-5)
    assert not found[1, 2:].any()


def test_candidates_carry_what_they_are_compared_with(whole: Path) -> None:
    """All are measured as they were sampled. In the first round nothing has moved but the users' vectors in front."""
    for number in (1, 2):
        for row in read_candidates(path_of(whole, number)):
            assert (
                len(row.sampled) == len(row.token_log_probs) == len(row.token_references) == row.tokens + row.finished
            )
            assert sum(row.token_log_probs) == pytest.approx(row.log_prob)
            assert sum(row.token_references) == pytest.approx(row.reference_log_prob)
            assert max(row.token_log_probs) <= 0


def test_the_base_reads_neither_user_nor_text() -> None:
    row = Candidate(0, "p", "p", "ann", 4, 0, "r", 2, True, 1.0, sampled=[7, 8])
    request = WriteRequest("p", "p", [1, 2, 3], "ann", 4, about=2)
    assert reading_of(row, request) == Reading(4, (1, 2, 3), (7, 8))
    assert as_base(row, request) == Reading(0, (3,), (7, 8))


# ---- advantages ----


def candidate(reward: float, user: str = "ann", prompt: str = "p", **changes: Any) -> Candidate:
    values: dict[str, Any] = {"candidate": 0, "response": "r", "tokens": 1, "finished": True, "sampled": [5]}
    values |= {"token_log_probs": [-1.0], "token_references": [-1.0]}
    return Candidate(policy_step=0, prompt_id=prompt, prompt=prompt, user_id=user, user_index=1, reward=reward,
                     **values | changes)  # fmt: skip


def advantages(groups: list[list[Candidate]], **changes: Any) -> list[list[float]]:
    config = TrainConfig.model_validate({"objective": "grpo", "reward": "rm"} | changes)
    zeros = [torch.zeros(len(group), 1) for group in groups]
    return [found.tolist() for found in advantages_of(groups, zeros, zeros, config)]


def test_users_with_large_rewards_have_no_larger_advantages() -> None:
    """Bob's rewards are a hundred times Ann's. Within a user, a prompt that hardly matters trains little."""
    ann = [[candidate(r, prompt=p) for r in some] for p, some in (("p", (0.0, 2.0)), ("q", (1.0, 1.02)))]
    bob = [[candidate(100 * row.reward, "bob", row.prompt_id) for row in group] for group in ann]
    found = advantages(ann + bob)
    assert [pytest.approx(some, rel=1e-3) for some in found[:2]] == found[2:]
    assert abs(found[0][0]) == pytest.approx(1.0, rel=1e-3)
    assert abs(found[1][0]) < 0.02
    by_group = advantages(ann, advantage_scale="group")
    assert abs(by_group[1][0]) == pytest.approx(abs(by_group[0][0]), rel=0.02)


def test_equal_rewards_train_nothing() -> None:
    group = [candidate(3.0), candidate(3.0)]
    for scale in ("user", "group", "none"):
        assert advantages([group], advantage_scale=scale) == [[0.0, 0.0]]


def test_a_response_that_was_cut_has_no_more_than_the_worst_that_ended() -> None:
    cut = {"finished": False}
    rewards = group_rewards([candidate(2.0), candidate(9.0, **cut), candidate(-1.0), candidate(-3.0, **cut)])
    assert rewards.tolist() == [2.0, -1.0, -1.0, -3.0]
    assert group_rewards([candidate(9.0, **cut), candidate(1.0, **cut)]).tolist() == [9.0, 1.0]


# ---- runs ----


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_what_has_more_reward_becomes_likelier(
    tmp_path: Path, make_config: MakeConfig, reward: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """For each user, Ann who likes short responses and others who like long ones, a hundred times as much."""
    seen: list[tuple[str, float]] = []

    def rewards(_: Any, candidates: Any, user: str) -> list[float]:
        return [(-1.0 if user == "ann" else 100.0) * len(one.text) for one in candidates]

    monkeypatch.setattr(BestOf, "rewards_of", rewards)
    monkeypatch.setattr(
        "prlhf.train.policy_gradient.group_rewards", lambda group: torch.tensor([r.reward for r in group])
    )
    own = PolicyGradientLoop.save

    def save(self: Any) -> None:
        own(self)
        self.model.eval()
        (steps,) = [self.drawn(read_candidates(path_of(self.config.folder, 1)), 1)]
        for name, group in steps[0][0]:
            with torch.no_grad():
                moved = ((self.engine.by_token(group.readings) - group.old) * group.mask).sum(1)
            seen.append((name.rpartition("/")[2], float((moved * group.advantages).sum())))

    monkeypatch.setattr(PolicyGradientLoop, "save", save)
    changes = {"objective": objective, "rounds": 1, "round_steps": 8, "round_prompts": 6, "batch_size": 6, "beta": 0.01}
    train(make_config(tmp_path / "run", reward=reward, alpha=1.0, **OPTIONS | changes | {"save_every": 8}))
    users = {user for user, _ in seen}
    assert users == {"ann", "bob", "cat"}
    for user in users:
        assert sum(gain for who, gain in seen if who == user) > 0, seen


def test_the_ratio_is_one_before_the_first_step(
    tmp_path: Path, make_config: MakeConfig, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs in training are those that were stored: no dropout, and the tokens that were sampled."""
    worst: list[float] = []
    own = PolicyGradientLoop.backward

    def backward(self: Any, batches: Any) -> Any:
        if self.step == 0:
            self.model.train()
            for group in batches[0]:
                with torch.no_grad():
                    found = self.engine.by_token(group.readings)
                worst.append(float((found - group.old).abs().max()))
                assert torch.equal(found != 0, group.mask != 0)
        return own(self, batches)

    monkeypatch.setattr(PolicyGradientLoop, "backward", backward)
    config = make_config(tmp_path / "run", reward=reward, **OPTIONS | {"rounds": 1, "round_steps": 1})
    train(config.model_copy(update={"lora_dropout": 0.2}))
    assert max(worst) < 1e-4


@pytest.mark.parametrize("at", [2, 5])
def test_a_stopped_run_continues(
    tmp_path: Path, make_config: MakeConfig, reward: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In the middle of either round, to the last bit; candidates and what they are compared with come from the file."""
    config = make_config(tmp_path / "run", reward=reward, **OPTIONS)
    own = PolicyGradientLoop.log

    def log(self: Any, *numbers: Any) -> None:
        own(self, *numbers)
        if self.step == at:
            raise Interrupted("here")

    with monkeypatch.context() as patch:
        patch.setattr(PolicyGradientLoop, "log", log)
        with pytest.raises(Interrupted, match="here"):
            train(config)
    train(config, resume=True)
    assert metrics.read(tmp_path / "run/metrics.jsonl") == metrics.read(whole / "metrics.jsonl")
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_numbers(whole: Path) -> None:
    """Those of all rounds, measured on all candidates, and those of each step."""
    rows = metrics.read(whole / "metrics.jsonl")
    candidates = read_candidates(path_of(whole, 2))
    (found,) = [row["candidates"] for row in rows if row.get("candidates", {}).get("round") == 2]
    kl = [row.log_prob - row.reference_log_prob for row in candidates]
    assert found["kl"] == pytest.approx(sum(kl) / len(kl))
    assert set(found["without_spread_by_user"]) == {"generic", "ann", "bob", "cat"}
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 6
    assert all(row["kl_per_token"] >= 0 and 0 <= row["clipped"] <= 1 for row in steps)
    assert steps[-1]["kl_per_token"] > 0
    results = json.loads((whole / "results.json").read_text())
    assert (results["objective"], results["steps"]) == ("grpo", 6)
    assert results["candidates"]["written"] == 2 * 6 * 3
    assert 0 <= results["eval"]["accuracy_macro"] <= 1
    assert "GRPO" in (whole / "model/README.md").read_text()


def test_groups_are_of_one_prompt_and_one_user(whole: Path) -> None:
    groups = groups_of(read_candidates(path_of(whole, 1)))
    assert len(groups) == 6
    assert all(len(group) == 3 and len({row.prompt_id for row in group}) == 1 for group in groups.values())


def test_rewards_without_a_difference(
    tmp_path: Path, make_config: MakeConfig, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BestOf, "rewards_of", lambda self, candidates, user: [1.0] * len(candidates))
    with pytest.raises(PrlhfError, match="in round 1 all candidates of a prompt have the same reward"):
        train(make_config(tmp_path / "run", reward=reward, **OPTIONS))


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_what_is_refused(tmp_path: Path, make_config: MakeConfig, reward: Path, objective: str) -> None:
    options = OPTIONS | {"objective": objective}
    with pytest.raises(PrlhfError, match=f"objective = {objective} does not go with parallel = fsdp"):
        start(make_config(tmp_path / "run", reward=reward, **options), ClusterConfig(workers=2, parallel="fsdp"))
    with pytest.raises(PrlhfError, match=f"objective = {objective} has no reward to score candidates by"):
        make_config(tmp_path, **options)
    with pytest.raises(PrlhfError, match="leaves no reference for new responses"):
        make_config(tmp_path, reward=reward, full_finetune=True, **options)
    assert not (tmp_path / "run").exists()
