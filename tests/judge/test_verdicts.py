from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_rows import row

from prlhf.errors import PrlhfError
from prlhf.judge.verdicts import pair
from prlhf.responses import Response


def names(a: list[Response], b: list[Response]) -> list[tuple[str, str, str, str]]:
    return [(p.prompt_id, p.user_id, p.a.user_id, p.b.user_id) for p in pair(a, b).pairs]


def test_rows_pair_by_prompt_and_user() -> None:
    a = [row("p2", "anna"), row("p1", "anna"), row("p1", "ben"), row("p3", "anna")]
    b = [row("p1", "ben"), row("p1", "anna"), row("p2", "anna"), row("p2", "ben")]
    assert names(a, b) == [
        ("p1", "anna", "anna", "anna"),
        ("p2", "anna", "anna", "anna"),
        ("p1", "ben", "ben", "ben"),
    ]
    pairing = pair(a, b)
    assert (pairing.unpaired_a, pairing.unpaired_b) == (1, 1)  # A's p3, B's (p2, ben)
    assert (pairing.generic_for_a, pairing.generic_for_b) == (0, 0)


def test_generic_responses_stand_in_for_missing_users() -> None:
    personal = [row("p1", "anna"), row("p1", "ben"), row("p1", "generic"), row("p2", "anna")]
    vanilla = [row("p1", "generic"), row("p3", "generic")]
    assert names(personal, vanilla) == [
        ("p1", "generic", "generic", "generic"),
        ("p1", "anna", "anna", "generic"),
        ("p1", "ben", "ben", "generic"),
    ]
    pairing = pair(personal, vanilla)
    assert (pairing.generic_for_a, pairing.generic_for_b) == (0, 2)
    assert (pairing.unpaired_a, pairing.unpaired_b) == (1, 1)  # (p2, anna) and p3


def test_a_user_is_seen_where_either_side_has_trained_on_them() -> None:
    a = [row("p1", "anna", index=0), row("p2", "anna", index=0), row("p1", "zoe", index=0), row("p1", "generic")]
    b = [row("p1", "anna", index=4), row("p2", "generic"), row("p1", "generic")]
    kinds = {(p.prompt_id, p.user_id): (p.kind, p.user_index) for p in pair(a, b).pairs}
    assert kinds == {
        ("p1", "anna"): ("seen", 4),
        ("p2", "anna"): ("seen", 4),
        ("p1", "zoe"): ("unseen", 0),
        ("p1", "generic"): ("generic", 0),
    }


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([row("p1", "anna")], [row("p2", "anna")], "A (1 rows) and B (1 rows) have no prompt in common"),
        ([row("p1", "anna")], [row("p1", "ben")], "share prompts but no user"),
        ([row("p1", "anna")], [replace(row("p1", "anna"), prompt="else")], "prompt 'p1' differs between A and B"),
    ],
)
def test_what_cannot_be_paired_is_refused(a: list[Response], b: list[Response], message: str) -> None:
    with pytest.raises(PrlhfError) as error:
        pair(a, b)
    assert message in str(error.value)


KEYS = st.lists(
    st.tuples(st.sampled_from(["p1", "p2", "p3"]), st.sampled_from(["generic", "anna", "ben", "zoe"])),
    unique=True,
    min_size=1,
)


@given(KEYS, KEYS)
def test_order_does_not_matter_and_swapping_mirrors(
    a_keys: list[tuple[str, str]], b_keys: list[tuple[str, str]]
) -> None:
    a = [row("p0", "generic"), *(row(*key) for key in a_keys)]
    b = [row("p0", "generic"), *(row(*key) for key in b_keys)]
    pairing = pair(a, b)
    assert pair(a[::-1], b[::-1]) == pairing
    swapped = pair(b, a)
    assert [(p.prompt_id, p.user_id, p.b, p.a) for p in swapped.pairs] == [
        (p.prompt_id, p.user_id, p.a, p.b) for p in pairing.pairs
    ]
    assert (swapped.unpaired_a, swapped.generic_for_a) == (pairing.unpaired_b, pairing.generic_for_b)
