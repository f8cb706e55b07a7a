"""Seats: the rows of the user model for those who are served at the moment, whatever the number of the run's users.

The decode loop knows people by their seats. Somebody who was learned again meanwhile gets a new seat, while responses
that were begun keep the old one. Seat 0 is the generic user's.
"""

from __future__ import annotations

import torch
from torch import nn

from prlhf.model.user_models import UserModel
from prlhf.serve.roster import Identity, ServedUser


class Seats:
    """Places for `count` people besides the generic user, in the tables of `users`, which they replace."""

    def __init__(self, users: UserModel, count: int) -> None:
        self._tables = users.row_tables()
        for table in self._tables.values():
            rows = table.weight.new_zeros(count + 1 - table.first, table.embedding_dim)
            if table.first == 0:
                rows[0] = table.weight[0]
            table.selected, table.weight = None, nn.Parameter(rows, requires_grad=False)
        self._free = list(range(count, 0, -1))
        self._taken: dict[Identity, int] = {}
        self._holders: dict[int, int] = {}  # responses by seat

    def take(self, person: ServedUser) -> int:
        """The seat of `person`, for one more response."""
        if not person.rows:
            return 0
        seat = self._taken.get(person.who)
        if seat is None:
            seat = self._taken[person.who] = self._free.pop()
            with torch.no_grad():
                for name, table in self._tables.items():
                    table.weight[seat - table.first] = person.rows[name][0].to(table.weight.device)
        self._holders[seat] = self._holders.get(seat, 0) + 1
        return seat

    def leave(self, person: ServedUser) -> None:
        """A response for `person` has ended; after the last one the seat is free."""
        if not person.rows:
            return
        seat = self._taken[person.who]
        self._holders[seat] -= 1
        if not self._holders[seat]:
            del self._holders[seat], self._taken[person.who]
            self._free.append(seat)
