"""User models: user indices [B] -> soft-prompt vectors [B, T_u, d] (paper, section 4.3, Examples 1-3).

Index 0 is the generic user, 1..m are the users seen in training. Parameters are fp32 whatever the base's precision.
What belongs to one user is a row of `SparseRows`, with sparse gradients; what all users share is a dense parameter.

A low-rank individual model, o_i = a_i B, would be `cluster` with linear weights: with r = K - 1 and one weight held at
1 (for e_0) it is the same function, with as many parameters, r per user against K.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.extensions import USER_MODELS

Start = Callable[[int], Tensor]  # the number of d-vectors -> [n, d] to start from
DRAWN_AT_ONCE = 2**16  # vocabulary rows: the indices for a million users would take much memory


class Size(NamedTuple):
    """Parameters of a user model: all of them, and those that belong to one user alone."""

    total: int
    per_user: int


class UserModel(nn.Module):
    """Base of all user models, with all that the rest of the code needs to know of one.

    A subclass has a name by the decorator `user_model`, sets `tokens`, and defines `__init__(config, users, start)`,
    for `users` seen users, and `forward`.
    """

    personal: ClassVar[bool] = True  # False: its vectors are the same for everyone
    uses: ClassVar[frozenset[str]] = frozenset()  # keys of TrainConfig that only some user models read
    tokens: int  # T_u

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        """Vectors [B, T_u, d] of the users [B]."""
        raise NotImplementedError

    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """The parameters, in groups with a learning rate each."""
        return [(list(self.parameters()), config.user_lr)]

    def row_tables(self) -> dict[str, SparseRows]:
        """The tables with a row per user, by the names of their weights in the state dict."""
        return {f"{name}.weight": table for name, table in self.named_modules() if isinstance(table, SparseRows)}

    @classmethod
    def size(cls, config: TrainConfig, users: int, width: int) -> Size:
        """Count the parameters for `users` seen users and embeddings of `width`, without allocating them."""
        with torch.device("meta"):
            model = cls(config, users, lambda count: torch.empty(count, width))
        total = sum(parameter.numel() for parameter in model.parameters())
        return Size(total, sum(table.weight.shape[1] for table in model.row_tables().values()))

    @classmethod
    def warnings(cls, config: TrainConfig, users: int) -> list[str]:  # noqa: ARG003
        """Why training it on `users` seen users may be of little use."""
        if cls.personal and users == 1:
            return ["one user only: the result will not differ from plain DPO"]
        return []


M = TypeVar("M", bound=type[UserModel])


def user_model(name: str) -> Callable[[M], M]:
    """Register the decorated class as the user model `name`."""
    return USER_MODELS.decorator(name)


@user_model("uniform")
class Uniform(UserModel):
    """The same vectors for everyone (Example 1); with T_u = 0 this is vanilla DPO."""

    personal = False

    def __init__(self, config: TrainConfig, _users: int, start: Start) -> None:
        super().__init__()
        self.tokens = config.user_tokens
        self.shared = nn.Parameter(start(self.tokens))

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        return self.shared.expand(len(user_indices), *self.shared.shape)


@user_model("individual")
class Individual(UserModel):
    """e_0 + o_i (Example 2), for any number of users: vocabulary rows are drawn with replacement."""

    def __init__(self, config: TrainConfig, users: int, start: Start) -> None:
        super().__init__()
        self.tokens = config.user_tokens
        self.generic = nn.Parameter(start(self.tokens))
        width = self.generic.shape[1]
        if config.user_init == "zero":
            offsets = zeros(users, self.tokens * width)
        else:
            offsets = start(users * self.tokens).reshape(users, self.tokens * width)
        self.offsets = SparseRows(offsets, first=1)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        seen = user_indices.nonzero().squeeze(1)  # the generic user has no row, and must not touch another user's
        offsets = self.offsets(user_indices[seen]).view(len(seen), *self.generic.shape)
        return self.generic.expand(len(user_indices), *self.generic.shape).index_add(0, seen, offsets)


@user_model("cluster")
class Cluster(UserModel):
    """V . w_i (Example 3), V: [K, T_u, d], w_i: [K]; the generic user has weights too.

    The released code applies a softmax to w_i; `cluster_weights: linear` takes w_i as it is.
    """

    uses = frozenset(("k", "cluster_weights", "cluster_lr"))

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
        self.weights = SparseRows(weights, first=0)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        weights: Tensor = self.weights(user_indices)
        if self.softmax:
            weights = weights.softmax(-1)
        return torch.einsum("bk,ktd->btd", weights, self.centers)

    @override
    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """A user's weights have a gradient in few steps and far to move; the centers have one in every step."""
        return [([self.centers], config.user_lr), (list(self.weights.parameters()), config.cluster_lr)]

    @override
    @classmethod
    def warnings(cls, config: TrainConfig, users: int) -> list[str]:
        found = super().warnings(config, users)
        if config.k > users:
            found.append(f"k = {config.k} clusters for {users} users: some clusters will stay unused")
        return found


def user_model_of(config: TrainConfig) -> type[UserModel]:
    """The class of the user model that `config` asks for. Raises PrlhfError for an unknown name."""
    kind: type[UserModel] = USER_MODELS[config.user_model]
    return kind


def build_user_model(config: TrainConfig, users: int, vocabulary: Tensor) -> UserModel:
    """The user model that `config` asks for, for `users` seen users. `vocabulary`: the base's input embeddings [V, d].

    `user_init = zero` starts e_0 (or V) from vocabulary rows and every user at the generic one; `vocabulary` draws the
    users' own parts from the vocabulary too; `random` draws everything from a normal distribution with the standard
    deviation of the vocabulary.
    """
    kind = user_model_of(config)
    vocabulary = vocabulary.detach().float().cpu()
    generator = torch.Generator().manual_seed(config.seed)

    def start(count: int) -> Tensor:
        drawn = torch.empty(count, vocabulary.shape[1])  # filled in place: it may take most of the memory
        if config.user_init == "random":
            return drawn.normal_(0, vocabulary.std().item(), generator=generator)
        for part in drawn.split(DRAWN_AT_ONCE):
            rows = torch.randint(len(vocabulary), (len(part),), generator=generator)
            torch.index_select(vocabulary, 0, rows, out=part)
        return drawn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return kind(config, users, start)


def size_of(config: TrainConfig, users: int, width: int) -> Size:
    """The size of the user model that `config` asks for, for `users` seen users and embeddings of `width`."""
    return user_model_of(config).size(config, users, width)


# ---- a row per user ----


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
