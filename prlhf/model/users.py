"""User models: user index [B] -> soft-prompt vectors [B, T_u, d] (paper, section 4.3, Examples 1-3).

Index 0 is the generic user, 1..m are the users seen in training. Parameters are fp32 whatever the base's
precision. What belongs to one user is a row of a `Table`, with sparse gradients; what all share is a dense parameter.
To add one: a class with this `forward`, and a line in `USER_MODELS`.

A low-rank individual model, o_i = a_i B, is not among them: with r = K - 1 it is `cluster` with linear weights and one
of them held at 1 (e_0), and as large: 4 r bytes per user against 4 K.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.model.table import Table, zeros

Start = Callable[[int], Tensor]  # how many d-vectors -> [n, d] to start from
DRAWN_AT_ONCE = 2**16  # vocabulary rows; the indices of a million users' would be many


class UserModel(nn.Module):
    """Base of all user models. `tokens` is T_u."""

    tokens: int

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        raise NotImplementedError

    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters, in groups with a learning rate each."""
        return [(list(self.parameters()), config.user_lr)]


class Uniform(UserModel):
    """The same vectors for everyone (Example 1); T_u = 0 is vanilla DPO."""

    def __init__(self, config: TrainConfig, _users: int, start: Start) -> None:
        super().__init__()
        self.tokens = config.user_tokens
        self.shared = nn.Parameter(start(self.tokens))

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        return self.shared.expand(len(user_indices), *self.shared.shape)


class Individual(UserModel):
    """e_0 + o_i (Example 2). There is no cap on the number of users: rows are drawn with replacement."""

    def __init__(self, config: TrainConfig, users: int, start: Start) -> None:
        super().__init__()
        self.tokens = config.user_tokens
        self.generic = nn.Parameter(start(self.tokens))
        width = self.generic.shape[1]
        if config.user_init == "zero":
            offsets = zeros(users, self.tokens * width)
        else:
            offsets = start(users * self.tokens).reshape(users, self.tokens * width)
        self.offsets = Table(offsets, first=1)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        seen = user_indices.nonzero().squeeze(1)  # the generic user has no row, nor may it touch another's
        offsets = self.offsets(user_indices[seen]).view(len(seen), *self.generic.shape)
        return self.generic.expand(len(user_indices), *self.generic.shape).index_add(0, seen, offsets)


class Cluster(UserModel):
    """V . w_i (Example 3), V: [K, T_u, d], w_i: [K], with weights of its own for the generic user.

    The released code puts a softmax over w_i; `cluster_weights: linear` takes w_i as it is.
    """

    def __init__(self, config: TrainConfig, users: int, start: Start) -> None:
        super().__init__()
        self.tokens = config.user_tokens
        self.softmax = config.cluster_weights == "softmax"
        centers = start(config.k * self.tokens)
        self.centers = nn.Parameter(centers.reshape(config.k, self.tokens, centers.shape[1]))
        if config.user_init == "zero":  # everyone starts at the mean of the clusters
            weights = zeros(users + 1, config.k)
            if not self.softmax:
                weights += 1.0 / config.k
        else:
            weights = torch.randn(users + 1, config.k)
        self.weights = Table(weights, first=0)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        weights: Tensor = self.weights(user_indices)
        if self.softmax:
            weights = weights.softmax(-1)
        return torch.einsum("bk,ktd->btd", weights, self.centers)

    @override
    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """A user's weights are met once in many steps and have far to go; the centers are met in every step."""
        return [([self.centers], config.user_lr), (list(self.weights.parameters()), config.cluster_lr)]


USER_MODELS: dict[str, type[UserModel]] = {"uniform": Uniform, "individual": Individual, "cluster": Cluster}


def build_user_model(config: TrainConfig, users: int, vocabulary: Tensor) -> UserModel:
    """The user model `config` asks for, for `users` seen users. `vocabulary`: the base's input embeddings [V, d].

    `zero` starts e_0 (or V) from vocabulary rows and every user at the generic one; `vocabulary` draws the
    users' own parts from the vocabulary too; `random` draws all from a normal of the vocabulary's spread.
    """
    if config.user_model not in USER_MODELS:
        raise PrlhfError(f"user model '{config.user_model}' is not known", nearest(config.user_model, USER_MODELS))
    vocabulary = vocabulary.detach().float().cpu()
    generator = torch.Generator().manual_seed(config.seed)

    def start(count: int) -> Tensor:
        drawn = torch.empty(count, vocabulary.shape[1])  # filled in place: it may be most of the memory there is
        if config.user_init == "random":
            return drawn.normal_(0, vocabulary.std().item(), generator=generator)
        for part in drawn.split(DRAWN_AT_ONCE):
            rows = torch.randint(len(vocabulary), (len(part),), generator=generator)
            torch.index_select(vocabulary, 0, rows, out=part)
        return drawn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return USER_MODELS[config.user_model](config, users, start)


def size_of(config: TrainConfig, users: int, width: int) -> tuple[int, int]:
    """Count the parameters of the user model `config` asks for, and those of them that are one user's own.

    It is for `users` seen users and embeddings of `width`, and built without memory: any registered model is counted.
    """
    with torch.device("meta"):
        model = USER_MODELS[config.user_model](config, users, lambda count: torch.empty(count, width))
    rows = sum(module.weight.shape[1] for module in model.modules() if isinstance(module, Table))
    return sum(parameter.numel() for parameter in model.parameters()), rows
