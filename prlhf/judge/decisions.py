"""What became of a pair: the calls that were made about it, and the verdict they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["A", "B", "tie", "unparsed"]


@dataclass(frozen=True)
class Call:
    """One reading of a pair. Judges that read no order and ask nobody leave the rest as it is."""

    verdict: Verdict
    order: Literal["ab", "ba"] | None = None  # ab: A's response stood first
    chose_first: bool | None = None  # None: a tie, or no verdict
    answer: str | None = None  # as the judge gave it, the last one if it was asked again
    attempts: int = 0
    request: str | None = None  # hash of the request that the answer is to
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    labels: dict[str, Any] = field(default_factory=dict)  # what the codes in the answer mean
    finish_reason: str = ""  # as the server gave it; length: cut off; filtered, empty: no answer came


@dataclass(frozen=True)
class Decision:
    """`consistent`: whether both orders came to the same verdict; None where the pair was not read in both."""

    verdict: Verdict
    calls: tuple[Call, ...]
    consistent: bool | None = None


def combine(calls: Sequence[Call]) -> Decision:
    """Calls that agree decide; if they differ, the position did and the pair is a tie; without one of them, none."""
    verdicts = {call.verdict for call in calls}
    both = len(calls) > 1
    if "unparsed" in verdicts:
        return Decision("unparsed", tuple(calls))
    if len(verdicts) == 1:
        return Decision(calls[0].verdict, tuple(calls), True if both else None)
    return Decision("tie", tuple(calls), False)


def position_bias(decisions: Sequence[Decision]) -> dict[str, Any] | None:
    """How much the order decided; None where no judge was shown one.

    `first`: of the calls that chose, how many chose the response shown first. `inconsistent`: pairs of which both
    orders were read with different verdicts; `first_twice` and `second_twice`: those in which the place won both times.
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
