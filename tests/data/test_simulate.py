"""Length preferences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.tldr import choose_minority, minority_size, prefer_by_length


@pytest.mark.parametrize(
    ("one", "other", "shorter"),
    [
        ("a b", "a b c", "a b"),
        ("extraordinarily long", "a b c", "extraordinarily long"),  # words before characters
        ("aa bb", "a b", "a b"),  # characters break ties
        ("ab", "cd", None),
    ],
)
def test_words_then_characters(one: str, other: str, shorter: str | None) -> None:
    longer = {one: other, other: one}.get(shorter or "")
    for pair in ((one, other), (other, one)):
        assert prefer_by_length(*pair, shorter=True) == ((shorter, longer) if shorter else None)
        assert prefer_by_length(*pair, shorter=False) == ((longer, shorter) if shorter else None)


@pytest.mark.parametrize(
    ("users", "share", "size"), [(10, 0.3, 3), (40, 0.3, 12), (10, 0, 0), (10, 0.01, 1), (3, 1, 3)]
)
def test_minority_size(users: int, share: float, size: int) -> None:
    assert minority_size(users, share) == size


@given(st.lists(st.text(), unique=True), st.floats(0, 1), st.integers())
def test_the_minority_is_drawn_by_the_seed(users: list[str], share: float, seed: int) -> None:
    minority = choose_minority(users, share, seed)
    assert len(minority) == minority_size(len(users), share)
    assert [user for user in users if user in minority] == minority
    assert minority == choose_minority(users, share, seed)


def test_other_seeds_draw_others() -> None:
    users = [f"w{i}" for i in range(20)]
    assert len({tuple(choose_minority(users, 0.3, seed)) for seed in range(20)}) > 10
