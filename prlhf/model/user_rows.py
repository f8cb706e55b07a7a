"""Tables with a row per user, at a cost that does not depend on the number of users."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import override


class SparseRows(nn.Embedding):
    """A table whose row i belongs to user index `first` + i.

    The gradient is sparse: it holds the rows that were asked for and no others, so the cost of a step depends on its
    batch and not on the number of users. With `select` a table holds the rows of some users only, as when one user of a
    million is served.
    """

    selected: Tensor | None  # the user indices of the rows, ascending; None: all users

    def __init__(self, start: Tensor, first: int) -> None:
        super().__init__(start.shape[0], start.shape[1], _weight=start, sparse=True)
        self.first = first
        self.register_buffer("selected", None, persistent=False)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        """Rows [B, width] of the user indices [B], none of them below `first`.

        Raises:
            ValueError: the rows of a user were not selected.
        """
        return super().forward(user_indices - self.first if self.selected is None else self._place(user_indices))

    def select(self, user_indices: Iterable[int]) -> list[int]:
        """Make room for the rows of `user_indices`, and of the generic user if it has one, in place of all rows.

        Returns which rows of the whole table these are, ascending. Their values are still to be loaded.
        """
        selected = sorted({0, *user_indices} if self.first == 0 else set(user_indices))
        self.selected = torch.tensor(selected, dtype=torch.long, device=self.weight.device)
        self.weight = nn.Parameter(self.weight.new_empty(len(selected), self.embedding_dim))
        return [user_index - self.first for user_index in selected]

    def _place(self, user_indices: Tensor) -> Tensor:
        assert self.selected is not None
        if not torch.isin(user_indices, self.selected).all():  # another user's row would be worse than an error
            raise ValueError(f"the rows of some of the users {user_indices.tolist()} were not loaded")
        return torch.searchsorted(self.selected, user_indices)


def zeros(rows: int, width: int) -> Tensor:
    """A start [rows, width] that takes no memory before a row is written.

    torch would write every zero; numpy asks for pages of 2 MiB, most of which a few hundred users would touch.
    """
    if not rows * width:
        return torch.zeros(rows, width)
    memory = mmap.mmap(-1, 4 * rows * width, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, width)
