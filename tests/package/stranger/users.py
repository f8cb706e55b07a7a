"""A user model: e_0 + a_i B, with a row a_i [k] per user and B [k, n width] for all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.user_models import Place, UserModel, common_vectors, user_model
from prlhf.model.user_rows import SparseRows


@user_model("shared-rank")
class SharedRank(UserModel):
    """The users' offsets have rank k."""

    uses = frozenset(("k",))
    generic: Tensor

    def __init__(self, config: TrainConfig, users: int, place: Place) -> None:
        super().__init__(place)
        common_vectors(self, "generic", place)
        self.directions = nn.Parameter(place.start(config.k * self.vectors).reshape(config.k, -1))
        self.weights = SparseRows(torch.zeros(users, config.k), first=1)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        seen = user_indices.nonzero().squeeze(1)
        offsets = (self.weights(user_indices[seen]) @ self.directions).view(len(seen), *self.generic.shape)
        return self.generic.expand(len(user_indices), *self.generic.shape).index_add(0, seen, offsets)
