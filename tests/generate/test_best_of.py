"""The candidate with the highest reward stays, whatever batch it was written in, and the row says by whose reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prlhf.config import GenerateConfig
from prlhf.errors import PrlhfError
from prlhf.generate import best_of
from prlhf.generate.best_of import BestOf
from prlhf.generate.decoding import Written
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.generate.run import generate
from prlhf.model.checkpoint import load_policy
from prlhf.model.encoding import Encoded
from prlhf.model.rewards import ResponseReader, load_rewards
from prlhf.recipes import resolve
from prlhf.responses import Response, read_responses
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    train(make_config(folder, objective="rm"))
    return folder


def config(tmp_path: Path, **options: Any) -> GenerateConfig:
    values = {"out": tmp_path / "out.jsonl", "max_new_tokens": 6, "max_prompts": 2, "device": "cpu", "batch_size": 4}
    return GenerateConfig.model_validate(values | options)


def rows_of(run: Path, settings: GenerateConfig) -> list[Response]:
    generate(run, settings)
    return read_responses(settings.out)


class Planted:
    """In place of a run's rewards: the sum of a response's ids."""

    def __init__(self) -> None:
        self.model: Any = nn.Identity()
        self.asked: list[tuple[int, int]] = []  # comparisons and user, per call

    def __call__(self, batch: Sequence[Encoded], users: Sequence[int]) -> Tensor:
        self.asked.append((len(batch), users[0]))
        assert len(set(users)) == 1
        return torch.tensor([[float(sum(e.chosen)) for e in batch], [float(sum(e.rejected)) for e in batch]])


def sum_of_ids(policy: Any, row: Written | Response) -> float:
    text = row.text if isinstance(row, Written) else row.response
    prompt = row.request.prompt if isinstance(row, Written) else row.prompt
    return float(sum(policy.encoder().response(prompt, text, 100)))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_arg_max_of_a_planted_reward_stays(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Every candidate is written and scored; an odd one out is scored too."""
    policy = load_policy(trained, "cpu", "fp32")
    written: list[Written] = []

    def spy(*args: Any) -> Iterator[list[Written]]:
        for rows in best_of_write(*args):
            written.extend(rows)
            yield rows

    best_of_write = best_of.write
    monkeypatch.setattr(best_of, "write", spy)
    planted = Planted()
    requests = [WriteRequest("p", "my boss", [5, 6, 7], user, i) for i, user in enumerate(("generic", "ann", "bob"))]
    settings = config(tmp_path, best_of=count, reward=trained)
    ended = BestOf(trained, ResponseReader(policy), planted)(policy, requests, settings)
    chosen = sorted((row for rows in ended for row in rows), key=lambda row: row.request.user_index)
    assert sorted(planted.asked) == [((count + 1) // 2, user) for user in (0, 1, 2)]
    assert len(written) == 3 * count
    for request, best in zip(requests, chosen, strict=True):
        candidates = [row for row in written if row.request.user_id == request.user_id]
        assert len({row.text for row in candidates}) > 1
        rewards = [sum_of_ids(policy, row) for row in candidates]
        assert best.reward == max(rewards)
        assert best.text == candidates[rewards.index(max(rewards))].text


def test_a_reward_that_is_nan_is_refused(tmp_path: Path, trained: Path) -> None:
    class Diverged(Planted):
        def __call__(self, batch: Sequence[Encoded], users: Sequence[int]) -> Tensor:
            return super().__call__(batch, users) * float("nan")

    policy = load_policy(trained, "cpu", "fp32")
    writer = BestOf(Path("runs/r"), ResponseReader(policy), Diverged())
    with pytest.raises(PrlhfError, match="runs/r returned NaN as the reward of a response to 'p' for 'ann'"):
        list(writer(policy, [WriteRequest("p", "my", [5], "ann", 1)], config(tmp_path, best_of=2, reward=trained)))


def test_each_candidate_has_its_own_random_numbers() -> None:
    seeds = [row_seed(0, WriteRequest("p", "", [], "ann", 1, candidate=i)) for i in range(4)]
    assert len(set(seeds)) == 4
    assert seeds[0] == row_seed(0, WriteRequest("p", "", [], "ann", 1))


def test_the_batch_size_changes_nothing(tmp_path: Path, trained: Path, reward_run: Path) -> None:
    files = []
    for size in (1, 5, 64):
        files.append(tmp_path / f"{size}.jsonl")
        generate(trained, config(tmp_path, out=files[-1], batch_size=size, best_of=3, reward=reward_run))
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


@pytest.mark.parametrize("kind", ["reward model", "policy"])
def test_it_is_at_least_as_good_as_the_only_candidate(
    tmp_path: Path, trained: Path, reward_run: Path, kind: str
) -> None:
    """Candidate 0 is what best_of = 1 writes, so nobody's reward is lower, and with 4 somebody's is higher."""
    reward = reward_run if kind == "reward model" else trained
    one = rows_of(trained, config(tmp_path, out=tmp_path / "one.jsonl"))
    best = rows_of(trained, config(tmp_path, out=tmp_path / "best.jsonl", best_of=4, reward=reward))
    reader_of, rewards = load_rewards(reward, "cpu")
    reader = ResponseReader(reader_of)
    gains = []
    with torch.no_grad():
        for a, b in zip(one, best, strict=True):
            e = reader.encode(a.prompt, a.user_id, a.response, b.response, "x")
            first, kept = rewards([e], [e.user_index]).flatten().tolist()
            assert b.reward == pytest.approx(kept, abs=1e-4)
            gains.append(kept - first)
    assert min(gains) > -1e-4
    assert max(gains) > 1e-3
    assert all(row.reward is None for row in one)


def test_rewards_are_read_as_the_user(reward_run: Path) -> None:
    """One pair of responses: users the run knows have rewards of their own, all others are the generic user."""
    reader_of, rewards = load_rewards(reward_run, "cpu")
    reader = ResponseReader(reader_of)
    encoded = [reader.encode("my boss", user, " sold", " lost", "x") for user in ("ann", "cat", "nobody", "generic")]
    assert [e.user_index for e in encoded] == [1, 3, 0, 0]
    with torch.no_grad():
        found = [rewards([e], [e.user_index]).flatten().tolist() for e in encoded]
    assert found[2] == found[3]
    assert found[0] != found[1] != found[2]


def test_the_rows_tell_how_they_were_chosen(tmp_path: Path, trained: Path, reward_run: Path) -> None:
    row = rows_of(trained, config(tmp_path, best_of=2, reward=reward_run))[0]
    assert (row.settings["best_of"], row.settings["reward"]) == (2, str(reward_run))
    assert len(row.settings["reward_weights"]) == 16
    assert isinstance(row.reward, float)


@pytest.mark.parametrize("first", [True, False])
def test_a_mix_is_refused(tmp_path: Path, trained: Path, reward_run: Path, first: bool) -> None:
    settings = [config(tmp_path, best_of=2, reward=reward_run), config(tmp_path)]
    one, other = settings if first else settings[::-1]
    generate(trained, one)
    with pytest.raises(PrlhfError, match=r"holds responses with best_of = \d, not \d"):
        generate(trained, other)


def test_another_reward_is_refused(tmp_path: Path, trained: Path, reward_run: Path) -> None:
    generate(trained, config(tmp_path, best_of=2, reward=reward_run))
    with pytest.raises(PrlhfError, match="holds responses with reward = "):
        generate(trained, config(tmp_path, best_of=2, reward=trained))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 2}, "best_of = 2 has no reward to choose by; add --reward RUN"),
        ({"reward": "r"}, "reward = r has nothing to choose from; add --best-of N"),
        ({"best_of": 2, "reward": "r", "temperature": 0}, "best_of = 2 with temperature = 0 would produce"),
        ({"best_of": 2, "reward": "r", "baseline": "chosen"}, "best_of = 2 with baseline = chosen"),
        ({"best_of": 0}, "best_of = 0 is refused"),
    ],
)
def test_best_of_without_a_choice_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PrlhfError, match=message):
        resolve(GenerateConfig, options)


def test_a_missing_reward_model(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(PrlhfError, match=r"nowhere is not a checkpoint: it has no prlhf\.json"):
        generate(trained, config(tmp_path, best_of=2, reward=tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_a_reward_model_does_not_write(tmp_path: Path, reward_run: Path) -> None:
    with pytest.raises(PrlhfError, match="is a reward model, which does not write"):
        generate(reward_run, config(tmp_path))
    assert not list(tmp_path.iterdir())
