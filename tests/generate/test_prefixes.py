"""What comes again at the beginning of a prompt is computed once, and what is written stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_loop import ROOM, SERVED, TOKENS, Spy, policy_of, whole_forwards

from prlhf.generate.decode_loop import DecodeLoop, DecodeRow
from prlhf.generate.prefixes import Beginning, Joining, KeptBeginnings, bytes_of, joinings
from prlhf.model.checkpoint import Policy

SYSTEM = [(5 * i) % 57 + 2 for i in range(14)]
PLENTY = 1 << 20


def row(ids: list[int], user: int | None = 1, **more: Any) -> DecodeRow:
    return DecodeRow(tuple(ids), user, seed=0, **more)


def loop_of(policy: Policy, kept: KeptBeginnings | None = None, size: int = 4, room: int = 5) -> DecodeLoop:
    return DecodeLoop(policy.model, size, room, lambda _: False, kept=kept, least=4)


def written(loop: DecodeLoop, rows: list[DecodeRow]) -> list[list[int]]:
    assert sum(len(ended) for ended in loop.run(rows)) == len(rows)
    return [row.written for row in rows]


def alone(policy: Policy, rows: list[DecodeRow], room: int = 5) -> list[list[int]]:
    return [whole_forwards(policy, list(row.ids), row.user_index, room) for row in rows]


# ---- which ones ----


def test_positions_that_are_shared() -> None:
    one = Beginning("ann", (1, 2, 3), 2)
    assert (len(one), one.shared(one), one.shared(Beginning("ann", (1, 2, 9, 9), 2))) == (5, 5, 4)
    assert one.shared(Beginning("ann", (), 2)) == 2  # the vectors alone
    assert one.shared(Beginning("bob", (1, 2, 3), 2)) == 0


def test_turns_by_hand() -> None:
    """Slot 0 is there. Slot 1 goes on from it, 2 reads all, 3 goes on from 2, and 4 from 3; 5 shares too little."""
    kept = KeptBeginnings()
    a, b, c = (Beginning("a", tuple(ids)) for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [1, 2, 9]))
    d, e = Beginning("b", (1, 2, 3, 4)), Beginning("b", (1, 2, 3, 4, 5))
    fresh = [(1, b), (2, d), (3, e), (4, Beginning("b", (1, 2, 3, 4, 5, 6))), (5, c)]
    assert joinings(fresh, [(0, a)], kept, least=4) == [
        [Joining(1, b, 4, 0), Joining(2, d), Joining(5, c)],
        [Joining(3, e, 4, 2)],
        [Joining(4, fresh[3][1], 5, 3)],
    ]
    assert joinings([(1, c)], [(0, c)], kept, least=9) == [[Joining(1, c, 3, 0)]]  # the whole, however short


def states(columns: int) -> Any:
    return lambda: [(torch.zeros(1, columns, 2), torch.zeros(1, columns, 2))]


def test_what_is_kept() -> None:
    """Of 4 bytes a number, 16 bytes a position: there is room for eight."""
    kept = KeptBeginnings(8 * 16)
    one, longer = Beginning("a", (1, 2)), Beginning("a", (1, 2, 3))
    kept.keep(one, states(2))
    kept.keep(longer, states(3))  # in its place
    assert (list(kept.of("a")), kept.taken) == ([longer], 48)
    kept.keep(one, states(2))  # is known already
    other, third = Beginning("b", (1, 2, 3)), Beginning("c", (4, 5, 6))
    kept.keep(other, states(3))
    kept.use(longer)
    kept.keep(third, states(3))
    assert (list(kept.of("a")), list(kept.of("b")), list(kept.of("c"))) == ([longer], [], [third])
    kept.keep(Beginning("d", tuple(range(9))), states(9))  # is too large
    assert kept.taken == bytes_of(kept.use(longer)) + bytes_of(kept.use(third)) == 96


# ---- what is written and computed ----


@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_a_beginning_that_comes_again(name: str, attention: str) -> None:
    """At the same time, beside one that is written, and after all have left; longer and shorter than the windows."""
    policy = policy_of(name)
    if attention == "eager":
        policy.model.lm.set_attn_implementation("eager")
    kept = KeptBeginnings(PLENTY)
    for user in (1, None):
        rows = [row([*SYSTEM, *more], user) for more in ([7, 8], [9, 9, 3, 4], [7, 6])]
        assert written(loop_of(policy, kept), rows) == alone(policy, rows)
        again = [row([*SYSTEM, *more], user) for more in ([7, 5, 5], [2])]
        assert written(loop_of(policy, kept), again) == alone(policy, again)
        assert [one.reused for one in again] == [15, 14]


def test_only_what_is_new_is_computed() -> None:
    policy = policy_of("llama")
    spy, kept = Spy(policy), KeptBeginnings(PLENTY)
    rows = [row([*SYSTEM, 7, 8, 9]), row([*SYSTEM, 3, 4]), row([*SYSTEM, 3, 4], 2)]
    loop = loop_of(policy, kept)
    loop.join(rows)  # the last position of each is left to the step
    assert spy.shapes == [(2, TOKENS + 16), (1, 1)]  # two users, then the second row
    assert [one.reused for one in rows] == [0, 14, 0]
    while loop.active:
        loop.step()
    spy.shapes.clear()
    talk = [*rows[0].ids, *rows[0].written, 5, 6]
    loop_of(policy, kept).join([row(talk), row(talk, 0)])  # a conversation goes on; somebody else reads all
    assert sorted(spy.shapes) == [(1, 2), (1, TOKENS + len(talk) - 1)]


def test_somebody_else_in_the_same_place() -> None:
    """A seat is taken by others: `who` says whose numbers they were."""
    policy = policy_of("llama")
    kept = KeptBeginnings(PLENTY)
    prompt = [*SYSTEM, 7, 8]
    written(loop_of(policy, kept), [row(prompt, 1, who="ann")])
    with torch.no_grad():
        for table in policy.model.users.row_tables().values():
            table.weight[1 - table.first] = 5 * torch.randn(table.embedding_dim)
    changed = [row(prompt, 1, who="bob")]
    assert written(loop_of(policy, kept), changed) == alone(policy, changed)
    assert changed[0].reused == 0


POLICY = policy_of("gemma2")  # with and without windows


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(2, 4), min_size=1, max_size=12), st.integers(0, 2)), min_size=1, max_size=9
    ),
    st.integers(1, 4),
    st.sampled_from([0, 3000, PLENTY]),
)
def test_any_rows_are_written_as_alone(prompts: list[tuple[list[int], int]], size: int, room: int) -> None:
    """Short prompts of three words, so that many begin alike, served by one loop after the other."""
    kept = KeptBeginnings(room)
    for lot in (prompts[::2], prompts[1::2], prompts):
        rows = [row(ids, user, room=1 + len(ids) % 5) for ids, user in lot]
        if rows:
            found = written(loop_of(POLICY, kept, size, ROOM), rows)
            assert found == [one[: r.room] for one, r in zip(alone(POLICY, rows), rows, strict=True)]
        assert kept.taken == sum(bytes_of(kept.use(one)) for who in range(3) for one in [*kept.of(who)]) <= room
