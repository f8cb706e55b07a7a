"""Where columns go, what they hang off, and that every reading can be read back from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prlhf.kernels.segments import Segment
from prlhf.model.prefix_tree import families, pack
from prlhf.model.readings import Reading


def test_layout_of_two_responses_to_one_prompt() -> None:
    """The heading's example: | u u A B C | d e f | g h |, both responses predicted from C on."""
    found = pack([Reading(3, (11, 12, 13), (4, 5, 6)), Reading(3, (11, 12, 13), (7, 8))], 2, min_shared=1)
    assert found.ids.tolist() == [[0, 0, 11, 12, 13, 4, 5, 6, 7, 8]]
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 5, 6]]
    assert found.slots.int().tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert found.user_indices.tolist() == [3]
    assert found.segments == (Segment(0, 5, (), 0), Segment(5, 8, (0,), 5), Segment(8, 10, (0,), 5))
    assert found.columns.tolist() == [4, 5, 6, 4, 8]
    assert found.targets.tolist() == [4, 5, 6, 7, 8]
    assert found.owners.tolist() == [0, 0, 0, 1, 1]
    assert found.lasts.tolist() == [7, 9]


def test_what_responses_begin_with_is_shared_too() -> None:
    found = pack([Reading(0, (1, 2), (5, 6, 7)), Reading(0, (1, 2), (5, 6, 8)), Reading(0, (1, 2), (5, 6))], 0, 1)
    assert found.ids.tolist() == [[1, 2, 5, 6, 7, 8]]
    assert found.segments == (Segment(0, 4, (), 0), Segment(4, 5, (0,), 4), Segment(5, 6, (0,), 4))
    assert found.columns.tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert found.lasts.tolist() == [4, 5, 3]


def test_users_share_nothing_and_one_users_prompts_their_beginning() -> None:
    """User 4's vectors stand once in front of both prompts; user 0 has a tree of its own."""
    readings = [Reading(4, (1, 2), (5,)), Reading(0, (1, 2), (5,)), Reading(4, (3,), (6,))]
    found = pack(readings, 2, min_shared=2)
    assert found.ids.tolist() == [[0, 0, 1, 2, 5, 3, 6, 0, 0, 1, 2, 5]]
    assert found.user_indices.tolist() == [4, 0]
    assert [segment.above for segment in found.segments] == [(), (0,), (0,), ()]


def test_short_beginnings_are_read_twice() -> None:
    """Too short to share: each has its own vectors in front, and a user for them."""
    found = pack([Reading(4, (1, 2), (5,)), Reading(4, (3,), (6,))], 2, min_shared=3)
    assert found.ids.tolist() == [[0, 0, 1, 2, 5, 0, 0, 3, 6]]
    assert found.user_indices.tolist() == [4, 4]
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]


ids = st.lists(st.integers(1, 3), min_size=1, max_size=6).map(tuple)
readings_of_three_words = st.lists(st.builds(Reading, st.integers(0, 2), ids, ids), min_size=1, max_size=8, unique=True)


@given(readings_of_three_words, st.integers(0, 3), st.integers(1, 4))
def test_every_reading_reads_back_whole(readings: list[Reading], tokens: int, min_shared: int) -> None:
    """Walking from a reading's last column up its segments gives its sequence, positions counting from 0."""
    found = pack(readings, tokens, min_shared)
    assert sum(s.end - s.start for s in found.segments) == found.ids.shape[1]
    for reading, last in zip(readings, found.lasts.tolist(), strict=True):
        tip = next(s for s in found.segments if s.start <= last < s.end)
        path = [c for i in tip.above for c in range(found.segments[i].start, found.segments[i].end)]
        path += range(tip.start, last + 1)
        assert found.positions[0, path].tolist() == list(range(len(path)))
        assert found.slots[0, path].tolist() == [True] * tokens + [False] * (len(path) - tokens)
        assert tuple(found.ids[0, path[tokens:]].tolist()) == reading.before + reading.response
    for number, reading in enumerate(readings):
        assert tuple(found.targets[found.owners == number].tolist()) == reading.response
    assert found.slots.sum() == tokens * len(found.user_indices)


@given(readings_of_three_words)
def test_nothing_shared_is_read_twice(readings: list[Reading]) -> None:
    """With no least length, there is a column for each distinct beginning of a user's, and no more."""
    found = pack(readings, 1, min_shared=1)
    sequences = [(r.user_index, *r.before, *r.response) for r in readings]
    beginnings = {s[:i] for s in sequences for i in range(1, len(s) + 1)}
    assert found.ids.shape[1] == len(beginnings)


@given(readings_of_three_words, st.integers(1, 30), st.booleans())
def test_families_stay_together_within_the_budget(readings: list[Reading], budget: int, trees: bool) -> None:
    parts = list(families(readings, 2, budget, trees))
    assert sorted(number for part in parts for number in part) == list(range(len(readings)))
    of = {number: i for i, part in enumerate(parts) for number in part}
    for a, first in enumerate(readings):
        for b, second in enumerate(readings):
            assert of[a] == of[b] or first[:2] != second[:2]
    for part in parts:
        some = [readings[number] for number in part]
        if len({reading[:2] for reading in some}) > 1:
            assert pack(some, 2, min_shared=1 if trees else 99).ids.shape[1] <= budget


def test_a_budget_counts_prompts_once_in_trees() -> None:
    readings = [Reading(0, (1,) * 6, (i,)) for i in range(4)] + [Reading(0, (2,) * 6, (i,)) for i in range(4)]
    assert len(list(families(readings, 2, 24, trees=True))) == 1
    assert len(list(families(readings, 2, 24, trees=False))) == 2


def test_a_pack_moves_whole() -> None:
    found = pack([Reading(0, (1,), (2,))], 1).to("meta")
    tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert {t.device.type for t in tensors} == {"meta"}
    assert len(tensors) == 9


@pytest.mark.parametrize("count", [1, 3])
def test_an_empty_response_scores_nothing(count: int) -> None:
    found = pack([Reading(i, (7, 8), ()) for i in range(count)], 1)
    assert found.columns.tolist() == found.targets.tolist() == []
    assert found.lasts.tolist() == [3 * i + 2 for i in range(count)]


def test_filled_up_with_columns_nobody_sees() -> None:
    readings = [Reading(3, (11, 12), (4, 5)), Reading(0, (11, 12), (7,))]
    plain, filled = pack(readings, 2), pack(readings, 2, multiple=8)
    assert filled.ids.shape == (1, 16)
    assert filled.segments == (*plain.segments, Segment(11, 16, (), 0))
    assert not filled.slots[0, 11:].any()
    for name in ("user_indices", "columns", "targets", "owners", "lasts"):
        assert torch.equal(getattr(filled, name), getattr(plain, name))
    assert torch.equal(pack(readings, 2, multiple=11).ids, plain.ids)
