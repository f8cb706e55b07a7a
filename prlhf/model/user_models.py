"""User models: user indices [B] -> vectors [B, n, width] of the place where users act (section 4.3, Examples 1-3).

The paper's place is in front of the prompt: n = T_u soft-prompt vectors, as wide as the base's embeddings. The other
place is in the adapter: gates, which multiply the rank of LoRA (gates.py), as deviations from 1.

Index 0 is the generic user, 1..m are the users seen in training. Parameters are fp32 whatever the base's precision.
What belongs to one user is a row of `SparseRows`, with sparse gradients; what all users share is a dense parameter.

A low-rank individual model, o_i = a_i B, would be `cluster` with linear weights: with r = K - 1 and one weight held at
1 (for e_0) it is the same function, with as many parameters, r per user against K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.extensions import USER_MODELS
from prlhf.model.user_places import clusters_of, directions_for
from prlhf.model.user_rows import SparseRows, zeros

Start = Callable[[int], Tensor]  # how many vectors -> [n, width] to start from
DRAWN_AT_ONCE = 2**16  # vocabulary rows: the indices for a million users would take much memory


@dataclass(frozen=True)
class Place:
    """Where users act, as a user model sees it: `vectors` of `width` numbers each, learned at `rate`.

    `start(n)` draws n vectors [n, width] to start from, numbers with the standard deviation `scale`. `alike`: users
    start at the generic one. `anchored`: the generic user's vectors are 0 and stay 0.
    """

    vectors: int
    width: int
    rate: float
    start: Start
    scale: float
    alike: bool = False
    anchored: bool = False

    def rows(self, users: int) -> Tensor:
        """What `users` users start with, one row each: [users, vectors * width]."""
        if self.alike:
            return zeros(users, self.vectors * self.width)
        return self.start(users * self.vectors).reshape(users, self.vectors * self.width)


class Size(NamedTuple):
    """Parameters of a user model: all of them, and those that belong to one user alone."""

    total: int
    per_user: int


class UserModel(nn.Module):
    """Base of all user models, with all that the rest of the code needs to know of one.

    A subclass has a name by the decorator `user_model` and defines `__init__(config, users, place)`, for `users` seen
    users, which calls this one with `place`, and `forward`. The model of the vectors in front of the prompt may have
    gates beside it: `gates` is a user model too. One with `start_at` says so by `starts`.
    """

    personal: ClassVar[bool] = True  # False: its vectors are the same for everyone
    starts: ClassVar[bool] = False  # whether it has `start_at`
    uses: ClassVar[frozenset[str]] = frozenset()  # keys of TrainConfig that only some user models read
    gates: UserModel | None

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.vectors, self.rate, self.scale = place.vectors, place.rate, place.scale
        self.gates = None

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        """Vectors [B, n, width] of the users [B]."""
        raise NotImplementedError

    def start_at(self, codes: Tensor, seed: int) -> None:
        """Start users where their choices put them, `codes` [m, c]; 0 is the generic user. Built to start alike."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """T_u, if it acts in front of the prompt."""
        return self.vectors

    @property
    def idle(self) -> bool:
        """Whether it acts nowhere, so that everyone is served by adapter and base alone."""
        return self.vectors == 0 and self.gates is None

    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:  # noqa: ARG002
        """Its parameters without those of its gates, in groups with a learning rate each."""
        return [([p for name, p in self.named_parameters() if not name.startswith("gates.")], self.rate)]

    def row_tables(self) -> dict[str, SparseRows]:
        """The tables with a row per user, gates included, by the names of their weights in the state dict."""
        return {f"{name}.weight": table for name, table in self.named_modules() if isinstance(table, SparseRows)}

    def size(self) -> Size:
        """Count its parameters, gates included."""
        total = sum(parameter.numel() for parameter in self.parameters())
        return Size(total, sum(table.weight.shape[1] for table in self.row_tables().values()))

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


def common_vectors(module: nn.Module, name: str, place: Place) -> None:
    """Give `module` the vectors [n, width] of the generic user, which are a parameter or, if anchored, fixed zeros."""
    if place.anchored:
        module.register_buffer(name, torch.zeros(place.vectors, place.width), persistent=False)
    else:
        module.register_parameter(name, nn.Parameter(place.start(place.vectors)))


@user_model("uniform")
class Uniform(UserModel):
    """The same vectors for everyone (Example 1); with T_u = 0 this is vanilla DPO."""

    personal = False
    shared: Tensor

    def __init__(self, _config: TrainConfig, _users: int, place: Place) -> None:
        super().__init__(place)
        common_vectors(self, "shared", place)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        return self.shared.expand(len(user_indices), *self.shared.shape)


@user_model("individual")
class Individual(UserModel):
    """e_0 + o_i (Example 2), for any number of users: vocabulary rows are drawn with replacement."""

    starts = True
    generic: Tensor

    def __init__(self, _config: TrainConfig, users: int, place: Place) -> None:
        super().__init__(place)
        common_vectors(self, "generic", place)
        self.offsets = SparseRows(place.rows(users), first=1)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        seen = user_indices.nonzero().squeeze(1)  # the generic user has no row, and must not touch another user's
        offsets = self.offsets(user_indices[seen]).view(len(seen), *self.generic.shape)
        return self.generic.expand(len(user_indices), *self.generic.shape).index_add(0, seen, offsets)

    @override
    def start_at(self, codes: Tensor, seed: int) -> None:
        directions = directions_for(codes, self.offsets.embedding_dim, self.scale, seed)
        torch.matmul(codes, directions, out=self.offsets.weight.detach())


@user_model("cluster")
class Cluster(UserModel):
    """V . w_i (Example 3), V: [K, n, width], w_i: [K]; the generic user has weights too, unless he is anchored.

    The released code applies a softmax to w_i; `cluster_weights: linear` takes w_i as it is.
    """

    starts = True
    uses = frozenset(("k", "cluster_weights", "cluster_lr"))

    def __init__(self, config: TrainConfig, users: int, place: Place) -> None:
        super().__init__(place)
        self.softmax = config.cluster_weights == "softmax"
        self.centers = nn.Parameter(place.start(config.k * self.vectors).reshape(config.k, self.vectors, place.width))
        first = 1 if place.anchored else 0
        if place.alike:  # everyone starts at the mean of the clusters
            weights = zeros(users + 1 - first, config.k)
            if not self.softmax:
                weights += 1.0 / config.k
            if place.anchored:  # which is the generic user
                self.centers.data -= self.centers.data.mean(0)
        else:
            weights = torch.randn(users + 1 - first, config.k)
        self.weights = SparseRows(weights, first)

    @override
    def forward(self, user_indices: Tensor) -> Tensor:
        own = (user_indices >= self.weights.first).nonzero().squeeze(1)
        weights: Tensor = self.weights(user_indices[own])
        if self.softmax:
            weights = weights.softmax(-1)
        mixed = torch.einsum("bk,kvd->bvd", weights, self.centers)
        return mixed.new_zeros(len(user_indices), *mixed.shape[1:]).index_add(0, own, mixed)

    @override
    @torch.no_grad()
    def start_at(self, codes: Tensor, seed: int) -> None:
        """Centers of the codes around one vector for everyone, and each user's shares in them."""
        centers, shares = clusters_of(codes, len(self.centers), seed)
        directions = directions_for((shares[1:] @ centers)[codes.any(1)], self.centers[0].numel(), self.scale, seed)
        around = self.centers[0] * (self.weights.first == 0)
        self.centers.copy_(around + (centers @ directions).view_as(self.centers))
        self.weights.weight.copy_((shares.log() if self.softmax else shares)[self.weights.first :])

    @override
    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """A user's weights have a gradient in few steps and far to move; the centers have one in every step."""
        return [([self.centers], self.rate), (list(self.weights.parameters()), config.cluster_lr)]

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


# ---- built ----


def build_user_model(config: TrainConfig, users: int, vocabulary: Tensor, blocks: int = 1) -> UserModel:
    """The user model that `config` asks for, for `users` seen users.

    Args:
        config: `user_init = zero` starts e_0 (or V) from vocabulary rows and every user at the generic one, and so
            does `choices` before `start_at`;
            `vocabulary` draws the users' own parts from the vocabulary too; `random` draws everything from a normal
            distribution with the standard deviation of the vocabulary. Gates start from N(0, gate_scale^2).
        users: m.
        vocabulary: the base's input embeddings [V, d].
        blocks: the base's decoder layers, of which each may have a gate of its own.
    """
    vocabulary = vocabulary.detach().float().cpu()
    spread = vocabulary.std().item() if config.user_init in ("random", "choices") else 0.0
    drawn = torch.Generator().manual_seed(config.seed)
    gates_drawn = torch.Generator().manual_seed(config.seed)

    def vectors(count: int) -> Tensor:
        found = torch.empty(count, vocabulary.shape[1])  # filled in place: it may take most of the memory
        if config.user_init == "random":
            return found.normal_(0, spread, generator=drawn)
        for part in found.split(DRAWN_AT_ONCE):
            rows = torch.randint(len(vocabulary), (len(part),), generator=drawn)
            torch.index_select(vocabulary, 0, rows, out=part)
        return found

    def gates(count: int) -> Tensor:
        return torch.empty(count, config.lora_r).normal_(0, config.gate_scale, generator=gates_drawn)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _built(config, users, vocabulary.shape[1], blocks, vectors, gates, spread)


def size_of(config: TrainConfig, users: int, width: int, blocks: int = 1) -> Size:
    """The size of the user model that `config` asks for, counted without allocating it.

    `users` seen users, embeddings of `width`, and `blocks` decoder layers.
    """
    with torch.device("meta"):
        vectors, gates = (lambda count: torch.empty(count, width)), (lambda count: torch.empty(count, config.lora_r))
        return _built(config, users, width, blocks, vectors, gates).size()


def first_indices(config: TrainConfig, users: int) -> dict[str, int]:
    """The tables with a row per user of the user model that `config` asks for: the user index of each one's first row.

    By the names of their weights in the state dict, gates last.
    """
    with torch.device("meta"):
        model = _built(
            config, users, 1, 1, lambda count: torch.empty(count, 1), lambda count: torch.empty(count, config.lora_r)
        )
    return {name: table.first for name, table in model.row_tables().items()}


def _built(
    config: TrainConfig, users: int, width: int, blocks: int, vectors: Start, gates: Start, scale: float = 0.0
) -> UserModel:
    """The vectors in front of the prompt, none of them if users act in the adapter alone, and the gates beside them."""
    kind: Any = user_model_of(config)  # a subclass, whose arguments are these
    from_choices = config.user_init == "choices"
    alike = from_choices or config.user_init == "zero"
    in_prompt = Place(config.slots, width, config.user_lr, vectors, scale, alike)
    model: UserModel = (Uniform if config.user_in == "adapter" else kind)(config, users, in_prompt)
    if config.user_in != "prompt" and kind.personal:
        count, alike = blocks if config.gates == "block" else 1, from_choices or config.gate_scale == 0
        in_adapter = Place(count, config.lora_r, config.gate_lr, gates, config.gate_scale, alike, anchored=True)
        model.gates = kind(config, users, in_adapter)
    return model
