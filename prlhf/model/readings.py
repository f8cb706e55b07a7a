"""Readings: what a model reads, one response to one prompt as one user, and how they are laid out as padded rows.

Padded rows have the boundary between prompt and response at the same column P:

    | padding | T_u user slots | text about the user | prompt || response + its end | padding |
                                                             ^ column P

so the logits that score responses are the last R + 1 columns, and no others have to be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prlhf.model.encoding import Encoded


class Reading(NamedTuple):
    """One response to one prompt as one user; `before` is text about the user + prompt."""

    user_index: int
    before: tuple[int, ...]
    response: tuple[int, ...]


def readings_of(batch: Sequence[Encoded], user_indices: Sequence[int]) -> list[Reading]:
    """The 2B readings of B comparisons, chosen then rejected, as `user_indices` and not as their own users."""
    befores = [(i, tuple(e.text + e.prompt)) for e, i in zip(batch, user_indices, strict=True)]
    chosen = [Reading(*before, tuple(e.chosen)) for e, before in zip(batch, befores, strict=True)]
    return chosen + [Reading(*before, tuple(e.rejected)) for e, before in zip(batch, befores, strict=True)]


@dataclass(frozen=True)
class Rows:
    """Padded rows: `ids`, `mask`, `slots` are [N, L], `user_indices` is [N]; responses start at column `start`.

    `slots` marks the T_u columns of each row that the user model fills; the reference has none.
    """

    ids: Tensor
    mask: Tensor
    slots: Tensor
    user_indices: Tensor
    start: int

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`."""
        ids, mask, slots = (value.to(device) for value in (self.ids, self.mask, self.slots))
        return Rows(ids, mask, slots, self.user_indices.to(device), self.start)


def pad_rows(
    befores: Sequence[list[int]],
    responses: Sequence[list[int]],
    user_indices: Sequence[int],
    user_tokens: int,
    pad: int,
) -> Rows:
    """Lay out rows as at the head of this module. `befores`: the ids of text + prompt of each row."""
    start = user_tokens + max(len(before) for before in befores)
    length = start + max((len(response) for response in responses), default=0)
    ids = torch.full((len(befores), length), pad)
    mask = torch.zeros(len(befores), length, dtype=torch.long)
    slots = torch.zeros(len(befores), length, dtype=torch.bool)
    for row, (before, response) in enumerate(zip(befores, responses, strict=True)):
        first = start - len(before) - user_tokens
        slots[row, first : first + user_tokens] = True
        ids[row, start - len(before) : start] = torch.tensor(before, dtype=torch.long)
        ids[row, start : start + len(response)] = torch.tensor(response, dtype=torch.long)
        mask[row, first : start + len(response)] = 1
    return Rows(ids, mask, slots, torch.tensor(list(user_indices), dtype=torch.long), start)


def padded(readings: Sequence[Reading], user_tokens: int, pad: int) -> Rows:
    """One padded row for each reading, in their order."""
    befores, responses = [list(r.before) for r in readings], [list(r.response) for r in readings]
    return pad_rows(befores, responses, [r.user_index for r in readings], user_tokens, pad)
