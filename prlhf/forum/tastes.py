"""The tastes of the synthetic forum's readers: how they are put into words, and how they compare two summaries.

A taste has three dimensions with two opposite poles each: few facts or many, the week's order or backwards, warm words
or cold. A *wish* is a line before the post that asks for a taste; the tiny base is trained to follow it, like an
instruction-tuned model.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass

from prlhf.forum.posts import Style, Verdict

DIMENSIONS = ("length", "order", "tone")
# (side of a style, wished value) -> phrases; the first one is used to describe a user
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
_FACTS_WISHED = {-1: 1, 1: 4}  # a reader who prefers short summaries prefers the shortest


@dataclass(frozen=True)
class Taste:
    """One pole per dimension, 0 for indifferent. Length 1 is long, order 1 is the week's, tone 1 is warm."""

    length: int = 0
    order: int = 0
    tone: int = 0

    def only(self, dimension: str) -> Taste:
        """Return this taste in one dimension, indifferent in the others."""
        return Taste(**{dimension: getattr(self, dimension)})


def describe(taste: Taste) -> str:
    """Return a taste in words, such as `keep it very short. be kind to people.`."""
    return " ".join(WISHES[wish][0] for wish in _wishes_of(taste))


def understand(words: str) -> Taste:
    """Return the taste that `describe` put into words."""
    poles = (-1, 1)
    found = {d: [p for p in poles if describe(Taste(**{d: p})) in words] for d in DIMENSIONS}
    return Taste(**{d: p[0] for d, p in found.items() if p})


def _wishes_of(taste: Taste) -> list[tuple[str, int]]:
    wishes = [("facts", _FACTS_WISHED[taste.length])] if taste.length else []
    return wishes + [(d, getattr(taste, d)) for d in ("order", "tone") if getattr(taste, d)]


def write_wish(style: Style, named: set[str], rng: random.Random) -> str:
    """Write a line before a prompt that asks for the sides `named` (of `facts`, `order`, `tone`) of a style."""
    wishes = [rng.choice(WISHES[side, getattr(style, side)]) for side in sorted(named)]
    rng.shuffle(wishes)
    return f"{' '.join(wishes)}\n"


def prefers(taste: Taste, a: Verdict, b: Verdict) -> int:
    """Return 1 if a reader of this taste prefers `a`, -1 if `b`, 0 if neither.

    Well-formed and faithful summaries come first; then each dimension of the taste has one vote.
    """
    quality = _sign(a.well_formed + a.faithful - b.well_formed - b.faithful)
    sides = (a.facts - b.facts, a.order - b.order, a.tone - b.tone)
    votes = sum(pole * _sign(side) for pole, side in zip(astuple(taste), sides, strict=True))
    return quality or _sign(votes)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
