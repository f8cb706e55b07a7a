"""Tastes: putting them into words and back, and how they compare summaries."""

import itertools
import random

import pytest

from prlhf.forum import posts
from prlhf.forum.tastes import Taste, describe, prefers, understand, write_wish

POLES = (-1, 0, 1)
SHORT = posts.Verdict(True, True, 1, 0, 0)
LONG = posts.Verdict(True, True, 4, 1, 0)
FALSE = posts.Verdict(True, False, 1, 0, 0)
BROKEN = posts.Verdict(False, False)


@pytest.mark.parametrize("poles", itertools.product(POLES, POLES, POLES))
def test_what_is_said_is_understood(poles):
    assert understand(describe(Taste(*poles))) == Taste(*poles)


def test_a_taste_in_words():
    assert describe(Taste(length=-1, tone=1)) == "keep it very short. be kind to people."
    assert describe(Taste()) == ""
    assert Taste(1, -1, 1).only("order") == Taste(order=-1)


@pytest.mark.parametrize(
    ("taste", "a", "b", "vote"),
    [
        (Taste(length=-1), SHORT, LONG, 1),
        (Taste(length=1), SHORT, LONG, -1),
        (Taste(length=-1), SHORT, SHORT, 0),
        (Taste(), SHORT, LONG, 0),
        (Taste(order=1), LONG, SHORT, 1),
        (Taste(order=-1), LONG, SHORT, -1),
        (Taste(length=-1, order=1), SHORT, LONG, 0),  # one vote each
        (Taste(length=-1), FALSE, LONG, -1),  # faithfulness comes before taste
        (Taste(length=-1), BROKEN, FALSE, -1),
        (Taste(length=-1), BROKEN, BROKEN, 0),
        (Taste(tone=-1), posts.Verdict(True, True, 2, 1, -1), posts.Verdict(True, True, 2, 1, 1), 1),
    ],
)
def test_which_of_two_a_reader_prefers(taste, a, b, vote):
    assert prefers(taste, a, b) == vote
    assert prefers(taste, b, a) == -vote


def test_a_wish_names_what_it_is_asked_to():
    rng = random.Random(0)
    style = posts.Style(1, -1, 1)
    lines = {write_wish(style, {"facts", "tone"}, rng) for _ in range(300)}
    assert len(lines) == 3 * 3 * 2  # three phrases each, in either order
    assert "keep it very short. be kind to people.\n" in lines
    assert not any("last" in line or "end" in line for line in lines)
