"""What a reader of the made-up forum likes: tastes, how they are said, and how they decide between two summaries.

A taste has three dimensions, each with two opposite poles: few facts or many, first things first or last, warm words
or cold. A *wish* says a taste in a line before the post; the tiny base learns to heed it, as an instruction-tuned
model would.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass

from prlhf.forum.posts import Style, Verdict

DIMENSIONS = ("length", "order", "tone")
# (dimension, what is wished for) -> ways to say it, the first being the one that describes a user
WISHES: dict[tuple[str, int], tuple[str, ...]] = {
    ("facts", 1): ("keep it very short.", "one thing only.", "as short as can be."),
    ("facts", 2): ("keep it short.", "two things, please.", "not too long."),
    ("facts", 3): ("say a bit more.", "three things, please.", "rather long."),
    ("facts", 4): ("tell me everything.", "four things, please.", "as long as can be."),
    ("order", 1): ("first things first.", "start at the beginning.", "in order, please."),
    ("order", -1): ("last things first.", "start at the end.", "backwards, please."),
    ("tone", 1): ("be kind to people.", "warm words, please.", "speak nicely of them."),
    ("tone", 0): ("no words on people.", "plain words, please.", "just name them."),
    ("tone", -1): ("be mean to people.", "cold words, please.", "speak badly of them."),
}
_FACTS_WISHED = {-1: 1, 1: 4}  # a reader who likes short summaries likes the shortest best


@dataclass(frozen=True)
class Taste:
    """A pole per dimension, 0 where the reader does not care: length 1 long, order 1 the week's, tone 1 warm."""

    length: int = 0
    order: int = 0
    tone: int = 0

    def only(self, dimension: str) -> Taste:
        """This taste in one dimension, indifferent in the others."""
        return Taste(**{dimension: getattr(self, dimension)})


def describe(taste: Taste) -> str:
    """A taste in words: `keep it very short. be kind to people.`."""
    return " ".join(WISHES[wish][0] for wish in _wishes_of(taste))


def understand(words: str) -> Taste:
    """The taste that `describe` put into words."""
    poles = (-1, 1)
    found = {d: [p for p in poles if describe(Taste(**{d: p})) in words] for d in DIMENSIONS}
    return Taste(**{d: p[0] for d, p in found.items() if p})


def _wishes_of(taste: Taste) -> list[tuple[str, int]]:
    wishes = [("facts", _FACTS_WISHED[taste.length])] if taste.length else []
    return wishes + [(d, getattr(taste, d)) for d in ("order", "tone") if getattr(taste, d)]


def write_wish(style: Style, named: set[str], rng: random.Random) -> str:
    """A line asking for a style's `named` sides (of `facts`, `order`, `tone`), to stand before a post's prompt."""
    wishes = [rng.choice(WISHES[side, getattr(style, side)]) for side in sorted(named)]
    rng.shuffle(wishes)
    return f"{' '.join(wishes)}\n"


def prefers(taste: Taste, a: Verdict, b: Verdict) -> int:
    """1 where a reader of this taste prefers `a`, -1 for `b`, 0 for neither.

    Well-formed beats ill-formed and true beats false; then each dimension of the taste has one vote.
    """
    quality = _sign(a.well_formed + a.faithful - b.well_formed - b.faithful)
    sides = (a.facts - b.facts, a.order - b.order, a.tone - b.tone)
    votes = sum(pole * _sign(side) for pole, side in zip(astuple(taste), sides, strict=True))
    return quality or _sign(votes)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
