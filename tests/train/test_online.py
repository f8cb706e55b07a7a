"""Rounds of online DPO: what is written and trained on, and stopped runs that continue as if they were not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed import Killed
from losses import numbers

import prlhf
from prlhf.adapt.forget import forget_user
from prlhf.config import ClusterConfig
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.best_of import BestOf
from prlhf.model.encoding import Encoded
from prlhf.online.author import Author
from prlhf.online.candidates import Candidate, encoded, groups_of, path_of, ranked, read_candidates
from prlhf.progress import Silent
from prlhf.start_training import start
from prlhf.train import metrics, online
from prlhf.train.dry_run import plan
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
# dropout, so that random states matter; a checkpoint within each round
OPTIONS: dict[str, Any] = {
    "objective": "online-dpo", "rounds": 3, "round_steps": 2, "round_prompts": 6, "candidates": 3, "max_new_tokens": 6,
    "save_every": 3, "lora_dropout": 0.2, "batch_size": 4, "schedule": "cosine",
}  # fmt: skip


class DieAt(Silent):
    """Dies when a bar whose label begins with `label` has moved `moves` times."""

    def __init__(self, label: str, moves: int) -> None:
        self.label, self.left, self.open = label, moves, False

    def start(self, label: str, total: int) -> None:
        self.open = label.startswith(self.label)

    def advance(self, steps: int = 1, **values: float) -> None:
        self.left -= self.open
        if self.open and self.left == 0:
            raise Killed


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


def assert_same_run(folder: Path, expected: Path) -> None:
    assert metrics.read(folder / "metrics.jsonl") == metrics.read(expected / "metrics.jsonl")
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (folder / "model" / name).read_bytes() == (expected / "model" / name).read_bytes()
    for number in (1, 2, 3):
        assert path_of(folder, number).read_bytes() == path_of(expected, number).read_bytes()
    first, second = (numbers(json.loads((f / "results.json").read_text())) for f in (folder, expected))
    same = {"run": "", "reference": {}}  # who goes on finds more of it on disk
    assert first | same == second | same


@pytest.mark.parametrize(
    "progress",
    [DieAt("writing round 1", 1), DieAt("writing round 2", 1), DieAt("log-probs", 4), DieAt("training", 7)],
    ids=["writing the first round", "writing the second", "scoring", "training"],
)
def test_killed_anywhere(tmp_path: Path, make_config: MakeConfig, reward: Path, whole: Path, progress: DieAt) -> None:
    """The bar of the training moves once when it opens again, so its seventh move is step 4."""
    config = make_config(tmp_path / "run", reward=reward, **OPTIONS)
    with pytest.raises(Killed):
        train(config, progress=progress)
    assert not (tmp_path / "run/model").exists()
    train(config, resume=(tmp_path / "run/recipe.yaml").exists())
    assert_same_run(tmp_path / "run", whole)


def test_stopped_while_rewards_are_computed(
    tmp_path: Path, make_config: MakeConfig, reward: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second round: a checkpoint was written before it, and nothing is half-written."""
    config = make_config(tmp_path / "run", reward=reward, **OPTIONS)
    asked: list[int] = []
    with monkeypatch.context() as patch:
        own = Author.write

        def write(self: Any, requests: Any, number: int, step: int, progress: Any, stopped: Any) -> Any:
            asked.append(number)
            return own(self, requests, number, step, progress, lambda: number == 2)

        patch.setattr(Author, "write", write)
        with pytest.raises(Interrupted, match="stopped while round 2 was written; continue with: prlhf train --resume"):
            train(config)
    assert asked == [1, 2]
    assert (tmp_path / "run/checkpoints/checkpoint-2").is_dir()
    assert [path.name for path in (tmp_path / "run/candidates").iterdir()] == ["round-1.parquet"]
    train(config, resume=True)
    assert_same_run(tmp_path / "run", whole)


# ---- what is written, and what becomes of it ----


def test_candidates_of_a_round(whole: Path, reward: Path) -> None:
    """Each is kept with its user, the version of the policy, and the reward that its user gives it."""
    rows = read_candidates(path_of(whole, 2))
    assert {row.policy_step for row in rows} == {2}
    assert len(rows) == 6 * 3
    assert all(len(group) == 3 for group in groups_of(rows).values())
    assert sum(row.user_id == "generic" for row in rows) == 9  # 1 - alpha of them
    judge = prlhf.load(reward)
    for group in list(groups_of(rows).values())[::2]:
        expected = judge.reward(group[0].prompt, [row.response for row in group], group[0].user_id)
        assert [row.reward for row in group] == pytest.approx(expected, abs=1e-5)
    (row,) = [row for row in metrics.read(whole / "metrics.jsonl") if row.get("candidates", {}).get("round") == 2]
    assert row["step"] == 2
    assert row["candidates"]["reward"] == pytest.approx(sum(one.reward for one in rows) / len(rows))
    assert set(row["candidates"]["reward_by_user"]) == {"generic", "ann", "bob", "cat"}


def test_rewards_are_the_users_own(whole: Path, reward: Path) -> None:
    """And the shuffled ones another user's; the generic user is not shuffled."""
    judge = prlhf.load(reward)
    rows = [row for row in read_candidates(path_of(whole, 1)) if row.candidate == 0 and row.user_id != "generic"]
    for row in rows:
        others = [
            judge.reward(row.prompt, [row.response], user)[0] for user in ("ann", "bob", "cat") if user != row.user_id
        ]
        assert min(abs(row.shuffled_reward - other) for other in others) < 1e-5
        assert abs(row.shuffled_reward - row.reward) > 1e-5


def test_the_policy_that_writes_is_the_one_in_training(whole: Path) -> None:
    """Before the first step the adapter changes nothing, later it does; the reference is the same in all rounds."""
    first, last = (read_candidates(path_of(whole, number)) for number in (1, 3))
    by_text = {(row.group, row.response): row for row in first if row.log_prob == row.log_prob}
    again = [(by_text[key], row) for row in last if (key := (row.group, row.response)) in by_text]
    assert {row.response for row in first} != {row.response for row in last}
    for before, after in again:
        assert after.reference_log_prob == pytest.approx(before.reference_log_prob, abs=1e-3)


def row(user: str = "ann", prompt: str = "p", **changes: Any) -> Candidate:
    values = {"policy_step": 0, "user_index": 1, "candidate": 0, "response": "r", "tokens": 3, "finished": True}
    return Candidate(prompt_id=prompt, prompt=prompt, user_id=user, **(values | {"reward": 0.0} | changes))


def test_best_against_worst() -> None:
    """Of the same prompt and user; a response that was cut loses whatever its reward, and equal ones say nothing."""
    high, middle, low = (row(reward=value, candidate=i) for i, value in enumerate((2.0, 1.0, -1.0)))
    cut = row(user="bob", reward=9.0, finished=False)
    whole = row(user="bob", reward=0.5)
    same = [row(prompt="q", reward=1.0, candidate=i) for i in range(3)]
    assert ranked([middle, high, cut, low, whole, *same]) == [(high, low), (whole, cut)]


def test_a_cut_response_has_no_end() -> None:
    class Reader:
        def encode(self, *_: Any) -> Encoded:
            return Encoded([], [1], [5, 6, 0], [7, 8, 0], 1)

    (pair,) = ranked([row(reward=1.0), row(reward=0.0, finished=False)])
    found = encoded(Reader(), pair)  # type: ignore[arg-type]
    assert (found.chosen, found.rejected) == ([5, 6, 0], [7, 8])


def test_batches_mix_rounds_and_data(make_config: MakeConfig, tmp_path: Path) -> None:
    """A quarter is of the data, of which alpha is read as the user; no comparison repeats before all had their turn."""
    config = make_config(
        tmp_path, **OPTIONS | {"reward": tmp_path, "round_steps": 100, "offline_fraction": 0.25, "alpha": 0.75}
    )
    own = [(f"own-{i}", Encoded([], [1], [i], [0], 2)) for i in range(6)]
    given = [(f"given-{i}", Encoded([], [1], [i], [0], 3)) for i in range(5)]
    steps = online.draw_batches(own, given, config, number=1)
    assert len(steps) == 100
    drawn = [one for step in steps for batch in step for one in batch]
    assert all(sum(name.startswith("given") for name, _ in batch) == 1 for step in steps for batch in step)
    assert {name for name, _ in [one for one in drawn if one[0].startswith("own")][:6]} == {name for name, _ in own}
    as_user = [e.user_index == 3 for name, e in drawn if name.startswith("given")]
    assert 0.6 < sum(as_user) / len(as_user) < 0.9
    assert all(e.user_index == 2 for name, e in drawn if name.startswith("own"))
    assert steps != online.draw_batches(own, given, config, number=2)


def test_replay(tmp_path: Path, make_config: MakeConfig, reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons of so many earlier rounds are trained on again."""
    seen: dict[int, set[str]] = {}
    own = online.draw_batches

    def draw(rows: Any, given: Any, config: Any, number: int) -> Any:
        seen[number] = {name.partition("/")[0] for name, _ in rows}
        return own(rows, given, config, number)

    monkeypatch.setattr(online, "draw_batches", draw)
    short = OPTIONS | {"round_steps": 1, "round_prompts": 2, "candidates": 2, "offline_fraction": 0.0}
    train(make_config(tmp_path / "run", reward=reward, replay=1, **short))
    assert seen == {1: {"step-0"}, 2: {"step-0", "step-1"}, 3: {"step-1", "step-2"}}


def test_rewards_without_a_difference(
    tmp_path: Path, make_config: MakeConfig, reward: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BestOf, "rewards_of", lambda self, candidates, user: [1.0] * len(candidates))
    with pytest.raises(PrlhfError, match="in round 1 all candidates of a prompt have the same reward"):
        train(make_config(tmp_path / "run", reward=reward, **OPTIONS))


# ---- what a run says, and what is refused ----


def test_results(whole: Path) -> None:
    found = json.loads((whole / "results.json").read_text())
    assert found["candidates"]["written"] == 3 * 6 * 3
    assert [found["candidates"][name]["round"] for name in ("first", "last")] == [1, 3]
    assert (found["steps"], found["objective"]) == (6, "online-dpo")
    assert [row["round"] for row in metrics.read(whole / "metrics.jsonl") if "loss" in row] == [
        0.5 * i for i in range(1, 7)
    ]


def test_a_forgotten_user_leaves_the_candidates(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    forget_user(run, "ann")
    for number in (1, 2, 3):
        left = {row.user_id for row in read_candidates(path_of(run, number))}
        assert left == {row.user_id for row in read_candidates(path_of(whole, number))} - {"ann"}
    assert "ann" not in (run / "metrics.jsonl").read_text()


def test_shards_are_refused(tmp_path: Path, make_config: MakeConfig, reward: Path) -> None:
    """Who writes needs the whole model; so a plan for two workers suggests more of them, and no shards."""
    config, two = make_config(tmp_path / "run", reward=reward, **OPTIONS), ClusterConfig(workers=2)
    with pytest.raises(PrlhfError, match="online-dpo does not go with parallel = fsdp: no worker has the whole model"):
        start(config, two.model_copy(update={"parallel": "fsdp"}))
    assert not (tmp_path / "run").exists()
    assert "--workers 2" in plan(config)["peak_gib_with"]
    suggested = plan(config, cluster=two)["peak_gib_with"]
    assert "--workers 4" in suggested
    assert "--parallel fsdp" not in suggested


def test_a_reward_must_be_a_run(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match="no-run"):
        train(make_config(tmp_path / "run", reward=tmp_path / "no-run", **OPTIONS))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": None}, "online-dpo has no reward to score"),
        ({"full_finetune": True}, "leaves no reference for new"),
    ],
)
def test_settings_that_contradict(tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PrlhfError, match=said):
        make_config(tmp_path, **OPTIONS | {"reward": tmp_path} | changes)
