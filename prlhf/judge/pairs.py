"""Which response of A is judged against which response of B."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from prlhf.dataset import GENERIC, Text
from prlhf.errors import PrlhfError
from prlhf.responses import Response

T = TypeVar("T")
Rows = dict[tuple[str, str], Response]  # (prompt_id, user_id) -> row


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, to be judged as `user_id` would."""

    prompt_id: str
    user_id: str
    user_index: int  # 0: generic, or unseen in training by either side
    prompt: Text
    a: Response
    b: Response

    @property
    def kind(self) -> str:
        """`generic`, or whether training saw the user: `seen` or `unseen`."""
        if self.user_id == GENERIC:
            return GENERIC
        return "seen" if self.user_index > 0 else "unseen"


@dataclass(frozen=True)
class Pairing:
    """The pairs, and what became of the rest."""

    pairs: list[Pair]  # by user, then prompt, whatever the order of the files
    unpaired_a: int  # rows that take part in no pair
    unpaired_b: int
    generic_for_a: int  # pairs in which the generic response stands in for a user A has none for
    generic_for_b: int


def pair(a: list[Response], b: list[Response]) -> Pairing:
    """Pair by (prompt, user).

    A user missing on one side is served by that side's generic response to the prompt, so that a personalized policy
    can be judged against a vanilla one.
    """
    rows_a, rows_b = _by_key(a), _by_key(b)
    index = _user_indices([*a, *b])
    keys = sorted({*rows_a, *rows_b}, key=lambda key: (index[key[1]], key[1], key[0]))
    served = [(key, _serve(rows_a, key), _serve(rows_b, key)) for key in keys]
    pairs = [_make(*key, index[key[1]], a_row, b_row) for key, a_row, b_row in served if a_row and b_row]
    if not pairs:
        raise PrlhfError(_nothing_in_common(a, b), "generate both from the same prompts and users")
    return Pairing(
        pairs=pairs,
        unpaired_a=len(rows_a) - len({(p.a.prompt_id, p.a.user_id) for p in pairs}),
        unpaired_b=len(rows_b) - len({(p.b.prompt_id, p.b.user_id) for p in pairs}),
        generic_for_a=sum(p.a.user_id != p.user_id for p in pairs),
        generic_for_b=sum(p.b.user_id != p.user_id for p in pairs),
    )


def some(pairs: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of `pairs`, drawn by the seed; they stay in order."""
    if limit is None or limit >= len(pairs):
        return pairs
    drawn = sorted(random.Random(f"{seed}-some").sample(range(len(pairs)), limit))
    return [pairs[number] for number in drawn]


def _by_key(rows: list[Response]) -> Rows:
    return {(row.prompt_id, row.user_id): row for row in rows}


def _serve(rows: Rows, key: tuple[str, str]) -> Response | None:
    return rows.get(key) or rows.get((key[0], GENERIC))


def _user_indices(rows: list[Response]) -> dict[str, int]:
    """Each user's index where either side has trained on that user, else 0."""
    index: dict[str, int] = {}
    for row in rows:
        index[row.user_id] = max(row.user_index, index.get(row.user_id, 0))
    return index


def _make(prompt_id: str, user_id: str, user_index: int, a: Response, b: Response) -> Pair:
    if a.prompt != b.prompt:
        raise PrlhfError(f"prompt '{prompt_id}' differs between A and B", "give different prompts different ids")
    return Pair(prompt_id, user_id, user_index, a.prompt, a, b)


def _nothing_in_common(a: list[Response], b: list[Response]) -> str:
    if {row.prompt_id for row in a}.isdisjoint(row.prompt_id for row in b):
        return f"A ({len(a)} rows) and B ({len(b)} rows) have no prompt in common"
    return f"A ({len(a)} rows) and B ({len(b)} rows) share prompts but no user, and neither has generic responses"
