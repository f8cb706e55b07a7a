"""Readings that begin alike, read once: token columns packed without padding.

Readings that share their beginning (the user's vectors, text about the user, the prompt, the first words of responses)
share its columns; what follows are branches:

    readings of user 3:  u u A B C . d e f           columns   u u A B C | d e f | g h
                         u u A B C . g h             positions 0 1 2 3 4 | 5 6 7 | 5 6

A segment is a run of columns. It sees itself causally and, whole, the segments above it. Positions continue from the
segment above, so every reading is computed as if it stood alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prlhf.kernels.segments import Segment
from prlhf.model.readings import Reading

SLOT = -1  # in place of a token id: a column that the user model fills
MIN_SHARED = 8  # tokens; it is cheaper to read a shorter common beginning twice than as a segment


@dataclass(frozen=True)
class Pack:
    """Readings as one row of T columns without padding.

    `ids`, `positions`, `slots` are [1, T]; `user_indices` [n] is the user of each tree, whose T_u slots stand at its
    root, and `trees` [T] says to which of them each column belongs.
    Of the S scored tokens, `targets` [S], `columns` [S] says which column predicts each, and `owners` [S] whose
    reading it belongs to, of `readings`. `lasts` [readings] is the column of each reading's last token.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    user_indices: Tensor
    trees: Tensor
    segments: tuple[Segment, ...]
    columns: Tensor
    targets: Tensor
    owners: Tensor
    lasts: Tensor

    @property
    def readings(self) -> int:
        """How many readings are in the pack."""
        return len(self.lasts)

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on `device`."""
        moved: dict[str, Any] = {k: value.to(device) for k, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def pack(readings: Sequence[Reading], user_tokens: int, min_shared: int = MIN_SHARED, multiple: int = 1) -> Pack:
    """Lay out distinct `readings`, each behind `user_tokens` slots, in one row.

    The row is filled up to a `multiple` of columns that nothing else sees, for kernels that are compiled for each
    length.
    """
    sequences = [(*(SLOT,) * user_tokens, *r.before, *r.response) for r in readings]
    by_user: defaultdict[int, list[int]] = defaultdict(list)
    for number, reading in enumerate(readings):
        by_user[reading.user_index].append(number)
    forest = Forest(sequences, max(min_shared, 1))
    user_indices: list[int] = []
    for user_index, numbers in by_user.items():
        forest.grow(numbers, 0, ())
        roots = sum(not segment.above for segment in forest.segments)
        user_indices += [user_index] * (roots - len(user_indices))
    forest.fill(-len(forest.ids) % multiple)
    columns: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for number, reading in enumerate(readings):
        path = forest.path(number)
        first = user_tokens + len(reading.before)
        columns += path[first - 1 : -1]
        targets += reading.response
        owners += [number] * len(reading.response)
    slots = torch.tensor([[token == SLOT for token in forest.ids]])
    return Pack(
        ids=torch.tensor([[max(token, 0) for token in forest.ids]]),
        positions=torch.tensor([forest.positions]),
        slots=slots,
        user_indices=torch.tensor(user_indices),
        trees=torch.tensor(forest.trees()).clamp(max=len(user_indices) - 1),
        segments=tuple(forest.segments),
        columns=torch.tensor(columns),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        lasts=torch.tensor([forest.path(number)[-1] for number in range(len(readings))]),
    )


class Forest:
    """Columns and segments as they are added, trunk before branches."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], min_shared: int) -> None:
        self._sequences, self._min_shared = sequences, min_shared
        self._tips: dict[int, tuple[int, ...]] = {}  # sequence -> its segments
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []

    def grow(self, numbers: Sequence[int], depth: int, above: tuple[int, ...]) -> None:
        """Add what the sequences `numbers`, which are equal in their first `depth` tokens, have after these."""
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for number in numbers:
            rest = self._sequences[number][depth:]
            alone = () if len(rest) >= self._min_shared else (number,)
            groups[rest[: self._min_shared] + alone].append(number)
        for group in groups.values():
            shared = common([self._sequences[number][depth:] for number in group])
            path = above
            if shared:
                path = (*above, len(self.segments))
                self.segments.append(Segment(len(self.ids), len(self.ids) + len(shared), above, depth))
                self.ids += shared
                self.positions += range(depth, depth + len(shared))
            end = depth + len(shared)
            self._tips |= dict.fromkeys(group, path)
            longer = [number for number in group if len(self._sequences[number]) > end]
            if longer:
                self.grow(longer, end, path)

    def fill(self, columns: int) -> None:
        """Add columns that belong to no sequence and see only themselves."""
        if columns:
            self.segments.append(Segment(len(self.ids), len(self.ids) + columns, (), 0))
            self.ids += [0] * columns
            self.positions += range(columns)

    def trees(self) -> list[int]:
        """The number of each column's tree: how many roots stand before its own."""
        found: list[int] = []
        number: dict[int, int] = {}  # of a root segment -> of its tree
        for at, segment in enumerate(self.segments):
            root = segment.above[0] if segment.above else at
            found += [number.setdefault(root, len(number))] * (segment.end - segment.start)
        return found

    def path(self, number: int) -> list[int]:
        """The columns of a sequence, in order."""
        parts = (self.segments[i] for i in self._tips[number])
        return [column for part in parts for column in range(part.start, part.end)]


def common(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The common beginning of all `sequences`, which is that of the first and the last of them in order."""
    first, last = min(sequences), max(sequences)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def families(readings: Sequence[Reading], user_tokens: int, budget: int, trees: bool = True) -> Iterator[list[int]]:
    """Yield the numbers of `readings` in parts of about `budget` tokens, each with at least one family.

    Readings of one user and prompt are a family and stay together; as `trees` they read the prompt once. Families of
    one user are next to each other, since they may begin alike. What families share is counted for each, so parts tend
    to be smaller than `budget`; beginnings too short to be shared (`MIN_SHARED`) are counted once, so a part may be a
    little larger.
    """
    by_family: defaultdict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for number, reading in enumerate(readings):
        by_family[reading.user_index, reading.before].append(number)
    part: list[int] = []
    size = 0
    for (_, before), numbers in sorted(by_family.items()):
        copies = 1 if trees else len(numbers)
        tokens = copies * (user_tokens + len(before)) + sum(len(readings[number].response) for number in numbers)
        if part and size + tokens > budget:
            yield part
            part, size = [], 0
        part, size = part + numbers, size + tokens
    if part:
        yield part
