"""Beginnings that come again are read once: a row goes on from what was computed for one that begins like it.

That one may be written at the moment, join at the same time, or have left: `KeptBeginnings` has what was read for it,
and what it wrote, so that a conversation goes on where it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

LEAST = 16  # positions: to copy fewer is not worth a forward pass of its own
States = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [heads, columns, d_head]


@dataclass(frozen=True)
class Beginning:
    """What the first positions of a row are computed from: `ids`, after `front` vectors of `who` reads them."""

    who: Any
    ids: tuple[int, ...]
    front: int = 0

    def __len__(self) -> int:
        return self.front + len(self.ids)

    def shared(self, other: Beginning) -> int:
        """How many positions of both are the same; 0 if somebody else reads them."""
        return self.front + _common(self.ids, other.ids) if self.who == other.who else 0


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)


class KeptBeginnings:
    """What was computed for rows that have left, at most `room` bytes of it; what was used last stays longest."""

    def __init__(self, room: int = 0) -> None:
        self.room, self.taken = room, 0
        self._states: OrderedDict[Beginning, States] = OrderedDict()
        self._of: dict[Any, set[Beginning]] = {}

    def of(self, who: Any) -> Iterator[Beginning]:
        """The beginnings that `who` has read."""
        return iter(self._of.get(who, ()))

    def use(self, beginning: Beginning) -> States:
        """What was computed for `beginning`, which is one of those kept."""
        self._states.move_to_end(beginning)
        return self._states[beginning]

    def keep(self, beginning: Beginning, copy: Callable[[], States]) -> None:
        """Keep a `copy` of the states of all positions of `beginning`, in place of those that it goes on from."""
        known = [(one, one.shared(beginning)) for one in self.of(beginning.who)]
        if any(shared == len(beginning) for _, shared in known):
            return
        states = copy()
        size = bytes_of(states)
        if size > self.room:
            return
        for one in [one for one, shared in known if shared == len(one)]:
            self._drop(one)
        while self.taken + size > self.room:
            self._drop(next(iter(self._states)))
        self._states[beginning] = states
        self._of.setdefault(beginning.who, set()).add(beginning)
        self.taken += size

    def _drop(self, beginning: Beginning) -> None:
        self.taken -= bytes_of(self._states.pop(beginning))
        self._of[beginning.who].remove(beginning)
        if not self._of[beginning.who]:
            del self._of[beginning.who]


def bytes_of(states: States) -> int:
    """The memory of `states`."""
    return sum(each.nbytes for layer in states for each in layer)


@dataclass(frozen=True)
class Joining:
    """A beginning to be read into `slot`, after `past` positions from `source`: another slot, or one that is kept."""

    slot: int
    beginning: Beginning
    past: int = 0
    source: int | Beginning | None = None
    turn: int = field(default=0, compare=False)  # the source is there after the turns before this one


def joinings(
    fresh: Sequence[tuple[int, Beginning]],
    there: Sequence[tuple[int, Beginning]],
    kept: KeptBeginnings,
    least: int = LEAST,
) -> list[list[Joining]]:
    """How to read the `fresh` beginnings into their slots, turn by turn, if those of `there` are in theirs."""
    known: list[tuple[Beginning, int | Beginning, int]] = [(beginning, slot, 0) for slot, beginning in there]
    found: list[list[Joining]] = []
    for slot, beginning in fresh:
        joining = Joining(slot, beginning)
        for other, source, turn in [*known, *((one, one, 0) for one in kept.of(beginning.who))]:
            past = other.shared(beginning)
            if past >= min(least, len(beginning)) and (past, -turn) > (joining.past, -joining.turn):
                joining = Joining(slot, beginning, past, source, turn)
        known.append((beginning, slot, joining.turn + 1))
        found += [[] for _ in range(joining.turn + 1 - len(found))]
        found[joining.turn].append(joining)
    return found
