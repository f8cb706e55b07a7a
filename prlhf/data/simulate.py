"""Simulated users who choose by length (section 5.1): a minority prefers the shorter text, the rest the longer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from prlhf.responses import words


def minority_size(users: int, share: float) -> int:
    """`share` of `users`, rounded, but at least one where anyone is to be in the minority."""
    return max(1, round(share * users)) if share > 0 and users else 0


def choose_minority(users: Sequence[str], share: float, seed: int) -> list[str]:
    """The users who prefer the shorter text, drawn by `seed`, in the order of `users`."""
    drawn = set(random.Random(f"{seed}-minority").sample(users, minority_size(len(users), share)))
    return [user for user in users if user in drawn]


def prefer_by_length(one: str, other: str, shorter: bool) -> tuple[str, str] | None:
    """(chosen, rejected) by number of words, ties by characters; None where the texts are equally long."""
    a, b = _length(one), _length(other)
    if a == b:
        return None
    return (one, other) if (a < b) == shorter else (other, one)


def _length(text: str) -> tuple[int, int]:
    return words(text), len(text)
