"""The split by prompt and the users' indices, for any rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.rows import Row
from prlhf.data.splits import first_appearance, index_users, split_by_prompt, text_conflicts

ROWS = st.lists(
    st.builds(
        Row,
        id=st.text(max_size=3),
        prompt=st.sampled_from("pqrstuv"),
        chosen=st.just("a"),
        rejected=st.just("b"),
        user_id=st.sampled_from("12345"),
        user_text=st.sampled_from(["", "x", "y"]),
    ),
    max_size=40,
)


@given(ROWS, st.floats(0, 0.99), st.integers(0, 5))
def test_a_prompt_is_on_one_side(rows: list[Row], fraction: float, seed: int) -> None:
    train, held_out = split_by_prompt(rows, fraction, seed)
    prompts = {row.prompt for row in rows}
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, rows))
    assert bool(train) == bool(rows)
    assert bool(held_out) == (fraction > 0 and len(prompts) > 1)
    assert split_by_prompt(rows, fraction, seed) == (train, held_out)


def test_the_share_is_of_prompts() -> None:
    rows = [Row(str(i), f"{i // 3}?", "a", "b", "u") for i in range(300)]
    train, held_out = split_by_prompt(rows, 0.2, 0)
    assert (len(train), len(held_out)) == (240, 60)
    assert split_by_prompt(rows, 0.2, 1)[1] != held_out


@given(ROWS, ROWS)
def test_indices(train: list[Row], held_out: list[Row]) -> None:
    order = first_appearance(train)
    trained, judged, users = index_users(train, held_out, order)
    assert [u.user_index for u in users if u.seen] == list(range(1, len(order) + 1))
    assert all((u.user_index == 0) == (not u.seen) == (u.train_count == 0) for u in users)
    assert len({u.id for u in users}) == len(users)
    index = {u.id: u.user_index for u in users}
    for row in (*trained, *judged):
        assert row.user_index == index[row.user_id]
        assert row.seen == (row.user_id in order)
    assert sum(u.train_count for u in users) == len(train)
    assert sum(u.eval_count for u in users) == len(held_out)
    assert [r.id for r in trained] == [r.id for r in train]


@pytest.mark.parametrize("order", [["a"], ["a", "b", "c"], ["a", "b", "b"]])
def test_an_order_that_does_not_fit_is_a_bug(order: list[str]) -> None:
    rows = [Row("1", "p", "x", "y", "a"), Row("2", "p", "x", "y", "b")]
    with pytest.raises(ValueError, match=r"every training user once"):
        index_users(rows, [], order)


def test_text_conflicts_ignore_missing_texts() -> None:
    texts = [("a", ""), ("a", "x"), ("a", "x"), ("b", "x"), ("b", "y")]
    assert text_conflicts(Row("1", "p", "x", "y", user, text) for user, text in texts) == 1
