"""PersonalLLM: users as mixtures of reward models, and the choices that unseen users are learned from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from few_shot_raw import personalllm, scored, write_parquet

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.data.personalllm import REWARD_MODELS, Crowd, Item
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError

SMALL: dict[str, Any] = {"users": 6, "comparisons": 5, "unseen_fraction": 0.34}


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(source: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset="personalllm", source=str(source), out=tmp_path / "out", **SMALL | options))
        return read_prepared(tmp_path / "out")

    return run


def test_seen_and_unseen_users(tmp_path: Path, prep: Any) -> None:
    """12 prompts are held out, which is fewer than the 1,000 comparisons that both groups would have together."""
    data = prep(personalllm(tmp_path / "raw"))
    unseen = {user.id for user in data.users if not user.seen}
    assert len(data.users) == 6
    assert len(unseen) == 2
    assert {user.train_count for user in data.users if user.seen} == {5}
    assert {user.eval_count for user in data.users} == {12}
    assert Counter(row.user_id for row in data.choices) == dict.fromkeys(unseen, 4)
    assert all(row.seen and row.user_id not in unseen for row in data.train)
    assert data.manifest["kept"] == {"train": 20, "eval": 72, "choices": 8}
    asked = {row.prompt[0]["content"] for row in data.eval}
    assert asked == {f"Question {1000 + n}?" for n in range(12)}


def test_nobody_is_trained_on_the_pairs_that_unseen_users_choose_from(tmp_path: Path, prep: Any) -> None:
    data = prep(personalllm(tmp_path / "raw"), comparisons=15, shots=15)
    pool = {row.prompt[0]["content"] for row in data.choices}
    trained = {row.prompt[0]["content"] for row in data.train}
    assert len(pool) == len(trained) == data.manifest["pool"] == 15
    assert not pool & trained
    pairs = {(row.prompt[0]["content"], *sorted(side[0]["content"] for side in (row.chosen, row.rejected)))
             for row in data.choices}  # fmt: skip
    assert len(pairs) == 15  # all users choose between the same two responses


def test_choices_are_custom_data(tmp_path: Path, prep: Any) -> None:
    data = prep(personalllm(tmp_path / "raw"))
    manifest = prepare(PrepConfig(dataset=str(tmp_path / "out/choices.jsonl"), out=tmp_path / "again"))
    assert sum(manifest["kept"].values()) == len(data.choices)
    again = read_prepared(tmp_path / "again")
    assert {row.id for row in (*again.train, *again.eval)} == {row.id for row in data.choices}


def test_the_same_by_seed_and_others_by_another(tmp_path: Path, prep: Any) -> None:
    source = personalllm(tmp_path / "raw")
    one, again, other = (prep(source, seed=seed) for seed in (3, 3, -4))
    assert (one.train, one.choices) == (again.train, again.choices)
    assert one.manifest["content_hash"] != other.manifest["content_hash"]
    asked = [{row.prompt[0]["content"] for row in data.choices} for data in (one, other)]
    assert asked[0] != asked[1]
    crowds = [Crowd([Item("1", "Why?", (("a", one_model(0)),))], 3, 1.0, seed) for seed in (3, 3, -4)]
    weights = [crowd.weights["user-1"].tolist() for crowd in crowds]
    assert weights[0] == weights[1] != weights[2]


def one_model(place: int) -> tuple[float, ...]:
    return tuple(float(place == other) for other in range(len(REWARD_MODELS)))


def test_a_user_chooses_by_the_weighted_standardized_scores() -> None:
    """The second reward model counts in thousands, which must not give it more weight."""
    items = [Item("1", "Why?", (("a", (1.0, 0.0, *[0.0] * 8)), ("b", (0.0, 2000.0, *[0.0] * 8))))]
    crowd = Crowd(items, users=2, concentration=1.0, seed=0)
    crowd.weights = {"user-1": np.array([0.6, 0.4, *[0.0] * 8]), "user-2": np.array([0.4, 0.6, *[0.0] * 8])}
    rows = crowd.choose("train", ["user-1", "user-2"], items, 1, Random(0))
    assert [(row.user_id, row.chosen[0]["content"]) for row in rows] == [("user-1", "a"), ("user-2", "b")]  # type: ignore[index]


@pytest.mark.parametrize(("concentration", "largest"), [(0.001, (0.99, 1.0)), (1000.0, (0.1, 0.12))])
def test_concentration(concentration: float, largest: tuple[float, float]) -> None:
    """With a small one a user follows a single reward model, with a large one all of them."""
    crowd = Crowd([Item("1", "Why?", (("a", one_model(0)), ("b", one_model(1))))], 50, concentration, seed=0)
    weights = np.array(list(crowd.weights.values()))
    assert weights.sum(axis=1) == pytest.approx(1)
    low, high = largest
    assert low <= np.median(weights.max(axis=1)) <= high


BAD = {
    "no score": ({"response_3_beaver_7b": ...}, "column 'response_3_beaver_7b' is missing"),
    "null score": ({"response_3_beaver_7b": None}, "'response_3_beaver_7b' is null, not a number"),
    "infinite score": ({"response_3_beaver_7b": float("inf")}, "'response_3_beaver_7b' is inf, which is not a score"),
    "no number": ({"response_3_beaver_7b": float("nan")}, "'response_3_beaver_7b' is nan, which is not a score"),
    "boolean score": ({"response_3_beaver_7b": True}, "is true or false, not a number"),
    "blank prompt": ({"prompt": " "}, "'prompt' is empty"),
    "response is a number": ({"response_8": 5}, "'response_8' is a number, not text"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_rows(change: dict[str, Any], message: str, write_lines: Any, prep: Any) -> None:
    write_lines("raw/test.jsonl", *map(scored, range(100, 104)))
    source = write_lines("raw/train.jsonl", *map(scored, range(20)), scored(20, **change)).parent
    with pytest.raises(PrlhfError) as error:
        prep(source)
    assert error.value.message.startswith(f"{source}/train.jsonl:21: ")
    assert message in error.value.message
    assert prep(source, bad_rows="skip").manifest["dropped"]["malformed"] == 1


def test_equal_and_blank_responses_are_not_compared(write_lines: Any, prep: Any) -> None:
    """A row with one response that is left is dropped; one with two is a pair."""
    write_lines("raw/test.jsonl", scored(100, **{f"response_{n}": "x" if n % 2 else " y" for n in range(1, 9)}))
    alone = scored(1, **{f"response_{n}": "x" if n % 2 else " " for n in range(1, 9)})
    data = prep(write_lines("raw/train.jsonl", alone, *map(scored, range(2, 22))).parent)
    assert data.manifest["dropped"]["equal pair"] == 1
    assert {row.chosen[0]["content"] for row in data.eval} <= {"x", "y"}


def test_too_few_prompts(tmp_path: Path, prep: Any) -> None:
    source = personalllm(tmp_path / "raw", train=10)
    with pytest.raises(PrlhfError, match=r"comparisons = 6, and .* has 5 prompts to train on; set it to at most 5"):
        prep(source, comparisons=6)
    with pytest.raises(
        PrlhfError, match=r"shots = 6, and the pool of pairs to choose from has 5 .*; set it to at most 5"
    ):
        prep(source, shots=6)
    assert len(prep(source, comparisons=10, unseen_fraction=0, shots=6).choices) == 0  # nobody to learn


def test_sources_that_lack_something(tmp_path: Path, prep: Any) -> None:
    write_parquet(tmp_path / "raw/train.parquet", [scored(1)])
    with pytest.raises(PrlhfError, match=r"has no test.jsonl"):
        prep(tmp_path / "raw")
    with pytest.raises(PrlhfError, match=r"does not exist"):
        prep(tmp_path / "gone")
