"""demo-profiles and demo-crowd: preferences, hidden parts, and the options."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.data.demo_crowd import TASTES
from prlhf.data.demo_profiles import PROFILES
from prlhf.dataset import Comparison, Prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.forum import posts
from prlhf.forum.tastes import DIMENSIONS, prefers, understand


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(dataset: str, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset=dataset, out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


def verdicts(row: Comparison) -> tuple[posts.Verdict, posts.Verdict]:
    chosen, rejected = (posts.grade_summary(str(row.prompt), str(text)) for text in (row.chosen, row.rejected))
    assert chosen.faithful
    assert rejected.faithful
    return chosen, rejected


def test_profiles_choose_by_one_dimension_and_differ_in_no_other(prep: Any) -> None:
    data = prep("demo-profiles", comparisons=30)
    assert data.user_ids == list(PROFILES)
    assert {u.train_count for u in data.users} == {30}
    for row in (*data.train, *data.eval):
        chosen, rejected = verdicts(row)
        taste = PROFILES[row.user_id]
        assert prefers(taste, chosen, rejected) == 1
        if not taste.length:
            assert chosen.facts == rejected.facts
        if not taste.order:
            assert chosen.order == rejected.order or 1 in (chosen.facts, rejected.facts)
        if not taste.tone:
            assert chosen.tone == rejected.tone
    assert not {r.prompt for r in data.train} & {r.prompt for r in data.eval}


def test_profiles_are_known_but_hidden_from_the_model(prep: Any) -> None:
    data = prep("demo-profiles", comparisons=2)
    assert {u.id: understand(u.preference) for u in data.users} == PROFILES
    assert {u.text for u in data.users} == {r.user_text for r in data.train} == {""}


def test_profiles_share_the_held_out_posts(prep: Any) -> None:
    data = prep("demo-profiles", comparisons=2)
    asked = Counter(row.prompt for row in data.eval)
    assert len(asked) == 100
    assert set(asked.values()) == {6}


def test_the_crowd_chooses_by_taste(prep: Any) -> None:
    data = prep("demo-crowd", users=60, comparisons=3)
    tastes = {u.id: understand(u.preference) for u in data.users}
    assert set(tastes.values()) <= set(TASTES)
    assert all(prefers(tastes[row.user_id], *verdicts(row)) == 1 for row in (*data.train, *data.eval))
    assert len({r.prompt for r in (*data.train, *data.eval)}) == len(data.train) + len(data.eval)


def test_a_tenth_of_the_crowd_is_unseen_and_everyone_is_held_out_with(prep: Any) -> None:
    data = prep("demo-crowd", users=60, comparisons=3)
    seen, unseen = ([u for u in data.users if u.seen is kind] for kind in (True, False))
    assert (len(seen), len(unseen)) == (54, 6)
    assert {(u.train_count, u.eval_count) for u in seen} == {(3, 9)}  # 500 held out over 60 users
    assert {(u.user_index, u.train_count, u.eval_count) for u in unseen} == {(0, 0, 18)}
    assert all(u.text for u in unseen)


def test_the_crowd_is_the_papers_in_number(prep: Any) -> None:
    data = prep("demo-crowd")
    assert data.manifest["users"] == {"seen": 1350, "unseen": 150}
    assert data.manifest["kept"] == {"train": 1350 * 8, "eval": 1350 + 300}


@pytest.mark.parametrize("reveal", [0, 1, 2, 3])
def test_the_text_tells_as_many_dimensions_as_asked(reveal: int, prep: Any) -> None:
    data = prep("demo-crowd", users=30, comparisons=1, reveal=reveal)
    for user in data.users:
        told, taste = understand(user.text), understand(user.preference)
        named = [d for d in DIMENSIONS if getattr(told, d)]
        assert len(named) == reveal
        assert all(getattr(told, d) == getattr(taste, d) for d in named)
        assert user.text.endswith("\n") or not reveal


def test_one_dimension_leaves_two_tastes_that_are_opposite_in_the_rest() -> None:
    fitting = defaultdict(list)
    for taste in TASTES:
        for d in DIMENSIONS:
            fitting[d, getattr(taste, d)].append(taste)
    for (told, _), (one, other) in fitting.items():
        assert all(getattr(one, d) == -getattr(other, d) for d in DIMENSIONS if d != told)
    assert sum(TASTES.values()) == pytest.approx(1)


def test_noise_turns_training_choices_around_and_held_out_ones_not(prep: Any) -> None:
    data = prep("demo-crowd", users=100, comparisons=10, noise=0.3)
    tastes = {u.id: understand(u.preference) for u in data.users}
    turned = sum(prefers(tastes[r.user_id], *verdicts(r)) == -1 for r in data.train)
    assert 0.24 < turned / len(data.train) < 0.36
    assert all(prefers(tastes[r.user_id], *verdicts(r)) == 1 for r in data.eval)


@pytest.mark.parametrize("dataset", ["demo-profiles", "demo-crowd"])
def test_the_seed_decides(dataset: str, prep: Any) -> None:
    options = {"comparisons": 2} | ({"users": 20} if dataset == "demo-crowd" else {})
    hashes = [prep(dataset, seed=seed, **options).manifest["content_hash"] for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("dataset", ["demo-profiles", "demo-crowd"])
def test_a_source_makes_no_sense(dataset: str, prep: Any) -> None:
    with pytest.raises(PrlhfError, match=f"the {dataset} data set .* reads no --source"):
        prep(dataset, source="somewhere")


def test_the_demo_takes_more_users(prep: Any) -> None:
    data = prep("demo", users=40, comparisons=1)
    assert len(data.user_ids) == 40
    assert data.manifest["simulated"]["minority"] == [str(i) for i in range(4, 16)]
