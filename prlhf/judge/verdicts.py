"""Pairs of responses, and the verdicts on them: what is judged, each call to a judge, and the decision they lead to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from prlhf.dataset import GENERIC, Text
from prlhf.errors import PrlhfError
from prlhf.responses import Response

T = TypeVar("T")
Verdict = Literal["A", "B", "tie", "unparsed"]
_ByKey = dict[tuple[str, str], Response]  # (prompt_id, user_id) -> response


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, to be judged on behalf of `user_id`."""

    prompt_id: str
    user_id: str
    user_index: int  # 0: the generic user, or a user whom neither side was trained on
    prompt: Text
    a: Response
    b: Response

    @property
    def kind(self) -> str:
        """`generic`, or whether the user took part in training: `seen` or `unseen`."""
        if self.user_id == GENERIC:
            return GENERIC
        return "seen" if self.user_index > 0 else "unseen"


@dataclass(frozen=True)
class Pairing:
    """The pairs, and counts of the responses without a partner."""

    pairs: list[Pair]  # by user, then prompt, whatever the order of the files
    unpaired_a: int  # responses of A that are in no pair
    unpaired_b: int
    generic_for_a: int  # pairs in which A's generic response stands in, since A has none for the user
    generic_for_b: int


def pair(a: list[Response], b: list[Response]) -> Pairing:
    """Pair the responses of A and B by (prompt, user).

    If one side has no response for a user, its generic response to the prompt stands in, so that a personalized policy
    can be judged against a vanilla one. Raises PrlhfError if there is no pair, or a prompt's text differs.
    """
    by_key_a, by_key_b = _by_key(a), _by_key(b)
    index = _user_indices([*a, *b])
    keys = sorted({*by_key_a, *by_key_b}, key=lambda key: (index[key[1]], key[1], key[0]))
    found = [(key, _response_for(by_key_a, key), _response_for(by_key_b, key)) for key in keys]
    pairs = [_pair(*key, index[key[1]], of_a, of_b) for key, of_a, of_b in found if of_a and of_b]
    if not pairs:
        raise PrlhfError(_nothing_in_common(a, b), "generate both from the same prompts and users")
    return Pairing(
        pairs=pairs,
        unpaired_a=len(by_key_a) - len({(p.a.prompt_id, p.a.user_id) for p in pairs}),
        unpaired_b=len(by_key_b) - len({(p.b.prompt_id, p.b.user_id) for p in pairs}),
        generic_for_a=sum(p.a.user_id != p.user_id for p in pairs),
        generic_for_b=sum(p.b.user_id != p.user_id for p in pairs),
    )


def sample(pairs: list[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of `pairs`, drawn by the seed, in their order."""
    if limit is None or limit >= len(pairs):
        return pairs
    drawn = sorted(random.Random(f"{seed}-some").sample(range(len(pairs)), limit))
    return [pairs[number] for number in drawn]


def _by_key(responses: list[Response]) -> _ByKey:
    return {(one.prompt_id, one.user_id): one for one in responses}


def _response_for(by_key: _ByKey, key: tuple[str, str]) -> Response | None:
    return by_key.get(key) or by_key.get((key[0], GENERIC))


def _user_indices(responses: list[Response]) -> dict[str, int]:
    """Each user's index if either side was trained on that user, else 0."""
    index: dict[str, int] = {}
    for one in responses:
        index[one.user_id] = max(one.user_index, index.get(one.user_id, 0))
    return index


def _pair(prompt_id: str, user_id: str, user_index: int, a: Response, b: Response) -> Pair:
    if a.prompt != b.prompt:
        raise PrlhfError(f"prompt '{prompt_id}' differs between A and B", "give different prompts different ids")
    return Pair(prompt_id, user_id, user_index, a.prompt, a, b)


def _nothing_in_common(a: list[Response], b: list[Response]) -> str:
    if {one.prompt_id for one in a}.isdisjoint(one.prompt_id for one in b):
        return f"A ({len(a)} rows) and B ({len(b)} rows) have no prompt in common"
    return f"A ({len(a)} rows) and B ({len(b)} rows) share prompts but no user, and neither has generic responses"


# ---- verdicts ----


@dataclass(frozen=True)
class Call:
    """A pair, read once. Judges that ask no server set only `verdict`."""

    verdict: Verdict
    order: Literal["ab", "ba"] | None = None  # ab: A's response stood first
    chose_first: bool | None = None  # None: a tie, or no verdict
    answer: str | None = None  # the judge's text; the last one if it was asked again
    attempts: int = 0
    request: str | None = None  # hash of the request that was answered
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    labels: dict[str, Any] = field(default_factory=dict)  # what the codes in the answer mean
    finish_reason: str = ""  # the server's; `length`: cut off; `filtered`, `empty`: there is no answer


@dataclass(frozen=True)
class Decision:
    """A judge's verdict on a pair, and the calls behind it."""

    verdict: Verdict
    calls: tuple[Call, ...]
    consistent: bool | None = None  # whether both orders had the same verdict; None: the pair was read in one order


def combine(calls: Sequence[Call]) -> Decision:
    """The decision on a pair: the verdict if all calls agree, a tie if they differ, none if one of them has none."""
    verdicts = {call.verdict for call in calls}
    both = len(calls) > 1
    if "unparsed" in verdicts:
        return Decision("unparsed", tuple(calls))
    if len(verdicts) == 1:
        return Decision(calls[0].verdict, tuple(calls), True if both else None)
    return Decision("tie", tuple(calls), False)


def position_bias(decisions: Sequence[Decision]) -> dict[str, Any] | None:
    """How much the order of the responses mattered; None if the judge does not depend on it.

    `first`: the share of choices that fell on the response shown first. `inconsistent`: the number of pairs whose two
    orders had different verdicts; `first_twice` and `second_twice`: those in which the same place won both times.
    """
    calls = [call for decision in decisions for call in decision.calls if call.order is not None]
    if not calls:
        return None
    chosen = [call.chose_first for call in calls if call.chose_first is not None]
    both = [decision for decision in decisions if decision.consistent is not None]
    same_place = [{call.chose_first for call in decision.calls} for decision in both if not decision.consistent]
    return {
        "calls_that_chose": len(chosen),
        "first": sum(chosen) / len(chosen) if chosen else None,
        "pairs_in_both_orders": len(both),
        "inconsistent": len(same_place),
        "first_twice": sum(places == {True} for places in same_place),
        "second_twice": sum(places == {False} for places in same_place),
    }
