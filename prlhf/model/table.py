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
    def forward(self, users: Tensor) -> Tensor:
        """Rows [B, width] of the user indices [B], none of them below `first`."""
        return super().forward(users - self.first if self.held is None else self._found(users))

    def hold(self, users: Iterable[int]) -> list[int]:
        """Make room for the rows of `users`, and of the generic user if there is one, instead of all.

        Returns which rows of the whole table these are, ascending. What they hold is still to be loaded.
        """
        held = sorted({0, *users} if self.first == 0 else set(users))
        self.held = torch.tensor(held, dtype=torch.long, device=self.weight.device)
        self.weight = nn.Parameter(self.weight.new_empty(len(held), self.embedding_dim))
        return [user - self.first for user in held]

    def _found(self, users: Tensor) -> Tensor:
        assert self.held is not None
        if not torch.isin(users, self.held).all():  # a neighbour's row would be worse than none
            raise ValueError(f"of users {users.tolist()} some were not loaded")
        return torch.searchsorted(self.held, users)
