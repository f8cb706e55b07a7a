"""The demo data set: preferences, held-out posts, and the seed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import PrepConfig
from prlhf.data import demo, prepare
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.forum import posts


@pytest.fixture
def prep(tmp_path: Path) -> Any:
    def run(**options: Any) -> Prepared:
        prepare(PrepConfig(dataset="demo", out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


def test_three_of_ten_users_prefer_shorter(prep: Any) -> None:
    data = prep(comparisons=20)
    assert data.user_ids == [str(i) for i in range(1, 11)]
    assert all((u.train_count, u.eval_count, u.seen) == (20, 50, True) for u in data.users)
    for row in (*data.train, *data.eval):
        assert (len(row.chosen) < len(row.rejected)) == (row.user_id in ("4", "5", "6"))
        for response in (row.chosen, row.rejected):
            assert response.startswith(" ")
            assert posts.grade_summary(row.prompt, response).faithful
    assert data.manifest["simulated"] == {"by": "length", "minority": ["4", "5", "6"]}
    assert data.manifest["kept"] == data.manifest["read"] == {"train": 200, "eval": 500}


def test_posts_are_fresh_in_training_and_shared_in_evaluation(prep: Any) -> None:
    data = prep(comparisons=20)
    train, held_out = {r.prompt for r in data.train}, {r.prompt for r in data.eval}
    assert len(train) == 200
    assert len(held_out) == 50
    assert not train & held_out
    pairs = {(r.prompt, *sorted((r.chosen, r.rejected))) for r in data.eval}
    assert len(pairs) == 50  # every user compares the same two summaries


def test_a_post_met_in_training_is_not_held_out() -> None:
    met = {str(row.prompt) for row in demo._eval_rows(random.Random(0), set(), ["1"], ())}
    held_out = {str(row.prompt) for row in demo._eval_rows(random.Random(0), set(met), ["1"], ())}
    assert len(held_out) == 50
    assert not met & held_out


@pytest.mark.parametrize(("share", "minority"), [(0, []), (0.1, ["4"]), (0.5, ["4", "5", "6", "7", "8"])])
def test_the_minority_follows_the_share(share: float, minority: list[str], prep: Any) -> None:
    data = prep(comparisons=1, minority=share)
    assert data.manifest["simulated"]["minority"] == minority
    assert sorted({r.user_id for r in data.eval if len(r.chosen) < len(r.rejected)}) == minority


def test_the_seed_decides(prep: Any) -> None:
    first, again, other = (prep(comparisons=5, seed=seed).manifest["content_hash"] for seed in (0, 0, 1))
    assert first == again != other


def test_fewer_comparisons_are_the_beginning_of_more(prep: Any) -> None:
    few, more = prep(comparisons=2), prep(comparisons=4)
    assert more.train[:20] == few.train
    assert more.eval == few.eval


def test_the_default_takes_seconds(prep: Any) -> None:
    start = time.process_time()
    data = prep()
    assert time.process_time() - start < 2  # measured: 0.3
    assert len(data.train) == 3000


def test_a_source_makes_no_sense(prep: Any) -> None:
    with pytest.raises(PrlhfError, match="reads no --source"):
        prep(source="somewhere")
