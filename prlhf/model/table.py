"""A row of numbers per user, of which a batch, or whoever is served, needs few."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import override


def zeros(rows: int, width: int) -> Tensor:
    """A start [rows, width] that takes no memory before a row is written.

    torch would write every zero; numpy asks for pages of 2 MiB, of which a few hundred users touch most.
    """
    if not rows * width:
        return torch.zeros(rows, width)
    memory = mmap.mmap(-1, 4 * rows * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, width)


class Table(nn.Embedding):
    """Row i belongs to user index `first` + i.

    The gradient is sparse: it holds the rows that were asked for and no others, so that a step costs what its batch
    costs, however many users there are.

    A table can also be made to hold some users only (`hold`), as when one of a million is served.
    """

    held: Tensor | None  # the user indices of the rows, ascending; None: all of them

    def __init__(self, start: Tensor, first: int) -> None:
        super().__init__(start.shape[0], start.shape[1], _weight=start, sparse=True)
        self.first = first
        self.register_buffer("held", None, persistent=False)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        """Rows [B, width] of the user indices [B], none of them below `first`."""
        return super().forward(user_indices - self.first if self.held is None else self._found(user_indices))

    def hold(self, user_indices: Iterable[int]) -> list[int]:
        """Make room for the rows of `user_indices`, and of the generic user if there is one, instead of all.

        Returns which rows of the whole table these are, ascending. What they hold is still to be loaded.
        """
        held = sorted({0, *user_indices} if self.first == 0 else set(user_indices))
        self.held = torch.tensor(held, dtype=torch.long, device=self.weight.device)
        self.weight = nn.Parameter(self.weight.new_empty(len(held), self.embedding_dim))
        return [user_index - self.first for user_index in held]

    def _found(self, user_indices: Tensor) -> Tensor:
        assert self.held is not None
        if not torch.isin(user_indices, self.held).all():  # a neighbour's row would be worse than none
            raise ValueError(f"of users {user_indices.tolist()} some were not loaded")
        return torch.searchsorted(self.held, user_indices)
