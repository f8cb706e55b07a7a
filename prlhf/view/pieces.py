"""A row as the model reads it, in pieces: what both responses share, and then each response.

The tokens, and which of them the loss counts, are read off the layout that training gives to the model
(`prlhf.model.prefix_tree.pack`). What was cut to fit stands at its place, marked as cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from prlhf.model.encoding import Encoded
from prlhf.model.prefix_tree import SLOT, Pack, pack
from prlhf.model.readings import Reading, readings_of
from prlhf.train.encode import Demonstration

VECTORS, TEXT, PROMPT, RESPONSE = "user vectors", "text about the user", "prompt", "response"
BOTH, SIDES = "both", ("chosen", "rejected")


class Token(NamedTuple):
    """A token of a reading: its id (SLOT: a vector of the user), its part, and whether the loss counts it."""

    id: int
    part: str
    loss: bool
    cut: bool = False


class Piece(NamedTuple):
    """Tokens that follow one another and are of one kind. `of`: both, chosen or rejected."""

    of: str
    part: str
    loss: bool
    cut: bool
    ids: list[int]


def pieces_of(row: Encoded | Demonstration, whole: Encoded | Demonstration, slots: int) -> list[Piece]:
    """The pieces of `row`, in their order; `whole` is the same row in a context without a limit.

    Responses that are equal in tokens are one reading, which both sides share.
    """
    readings = _readings(row)
    layout = pack(list(dict.fromkeys(readings)), slots)
    paths = _paths(layout)
    text, prompt = len(row.text) if isinstance(row, Encoded) else 0, row.prompt
    parts = [VECTORS] * slots + [TEXT] * text + [PROMPT] * len(prompt)
    found = [_tokens(layout, number, path, parts) for number, path in enumerate(paths)]
    shared = _common(paths) if len(readings) > 1 else 0
    at, gone = _lost(prompt, whole.prompt)
    trunk, ends = found[0][:shared], [tokens[shared:] for tokens in found]
    missing, place = [Token(id_, PROMPT, False, cut=True) for id_ in gone], slots + text + at
    if place <= shared:
        trunk[place:place] = missing
    else:
        for tokens in ends:
            tokens[place - shared : place - shared] = missing
    pieces = _grouped(BOTH, trunk)
    for side, reading, all_of, tokens in zip(SIDES, readings, _readings(whole), ends * 2, strict=False):
        rest = [Token(id_, RESPONSE, False, cut=True) for id_ in all_of.response[len(reading.response) :]]
        pieces += _grouped(side, tokens + rest)
    return pieces


def _readings(row: Encoded | Demonstration) -> list[Reading]:
    """What training reads of a row as its user: both responses, or the one to imitate."""
    if isinstance(row, Encoded):
        return readings_of([row], [row.user_index])
    return [Reading(row.user_index, tuple(row.prompt), tuple(row.response))]


def _paths(layout: Pack) -> list[list[int]]:
    """The columns of each reading, in order."""
    found = []
    for last in layout.lasts.tolist():
        end = next(segment for segment in layout.segments if segment.start <= last < segment.end)
        runs = [*(layout.segments[number] for number in end.above), end]
        found.append([column for run in runs for column in range(run.start, run.end)])
    return found


def _tokens(layout: Pack, number: int, path: Sequence[int], parts: Sequence[str]) -> list[Token]:
    """The tokens of reading `number`; the layout says which of them it scores: the last ones."""
    scored = int((layout.owners == number).sum())
    ids, slots = layout.ids[0].tolist(), layout.slots[0].tolist()
    first = len(path) - scored
    return [
        Token(SLOT if slots[column] else ids[column], parts[at] if at < len(parts) else RESPONSE, at >= first)
        for at, column in enumerate(path)
    ]


def _lost(kept: Sequence[int], whole: Sequence[int]) -> tuple[int, list[int]]:
    """Where in `kept` tokens of `whole` are missing, and which: all between what both begin and end with."""
    if len(kept) >= len(whole):
        return 0, []
    head = _common([kept, whole])
    tail = min(_common([kept[::-1], whole[::-1]]), len(kept) - head)
    return head, list(whole[head : len(whole) - tail])


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many elements all `sequences` begin with."""
    first = min(sequences, key=len)
    return next((i for i, values in enumerate(zip(*sequences, strict=False)) if len(set(values)) > 1), len(first))


def _grouped(of: str, tokens: Sequence[Token]) -> list[Piece]:
    kinds: Any = groupby(tokens, key=lambda token: token[1:])
    return [Piece(of, part, loss, cut, [token.id for token in some]) for (part, loss, cut), some in kinds]
