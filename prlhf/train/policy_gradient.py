"""Policy optimization (`objective = grpo` or `rloo`): all candidates of a round train the policy, by their advantages.

Their advantages compare the candidates to one prompt for one user with one another, so what a prompt or a user is worth
in general has no effect. The losses are in objectives.py.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.dataset import Prepared
from prlhf.generate.requests import WriteRequest
from prlhf.online.author import TokenAuthor, reading_of
from prlhf.online.candidates import Candidate, groups_of
from prlhf.train import policy_losses as losses
from prlhf.train import rounds
from prlhf.train.objectives import Group
from prlhf.train.rounds import Rounds, in_passes


class PolicyGradientLoop(Rounds):
    """Rounds that GRPO or RLOO trains on."""

    author_of = TokenAuthor

    def __init__(self, data: Prepared, *about: Any) -> None:
        """As for Rounds. There is no dropout: the ratio of the policy to the one that wrote is 1 at first."""
        super().__init__(data, *about)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    @override
    def drawn(self, rows: Sequence[Candidate], number: int) -> list[list[list[rounds.Named[Group]]]]:
        asked = {(one.prompt_id, one.user_id): one for one in self.requests[number - 1]}
        groups = groups_for(list(groups_of(rows).values()), asked, self.config)
        if not any(group.advantages.any() for _, group in groups):
            return []
        config, fresh = self.config, in_passes(groups, random.Random(f"{self.config.seed} {number} batches"))
        steps, batches = range(config.round_steps), range(config.accumulation)
        return [[[next(fresh) for _ in range(config.batch_size)] for _ in batches] for _ in steps]


# ---- from candidates to groups ----


def groups_for(
    groups: Sequence[Sequence[Candidate]], asked: Mapping[tuple[str, str], WriteRequest], config: TrainConfig
) -> list[rounds.Named[Group]]:
    """Groups with their names, from the candidates of each and what was `asked` for them."""
    old = [_padded(row.token_log_probs for row in some) for some in groups]
    reference = [_padded(row.token_references for row in some) for some in groups]
    masks = [_padded([1.0] * len(row.sampled) for row in some) for some in groups]
    found = advantages_of(groups, old, reference, config)
    return [
        (
            f"step-{some[0].policy_step}/{some[0].prompt_id}/{some[0].user_id}",
            Group([reading_of(row, asked[row.group]) for row in some], *tensors),
        )
        for some, *tensors in zip(groups, found, old, reference, masks, strict=True)
    ]


def advantages_of(
    groups: Sequence[Sequence[Candidate]], old: Sequence[Tensor], reference: Sequence[Tensor], config: TrainConfig
) -> list[Tensor]:
    """The advantages [G] of each group, in units of `config.advantage_scale`."""
    rloo = config.objective == "rloo"
    rewards = [group_rewards(some) for some in groups]
    if rloo:
        about = zip(rewards, old, reference, strict=True)
        rewards = [losses.penalized(*one, config.beta) for one in about]
    found = [losses.above_others(some) if rloo else losses.above_mean(some) for some in rewards]
    if config.advantage_scale == "none":
        return found
    if config.advantage_scale == "group":
        return [losses.scaled(some, each.std()) for some, each in zip(found, rewards, strict=True)]
    spread = spread_by_user([some[0].user_id for some in groups], rewards)
    return [losses.scaled(some, spread[group[0].user_id]) for some, group in zip(found, groups, strict=True)]


def spread_by_user(users: Sequence[str], rewards: Sequence[Tensor]) -> dict[str, Tensor]:
    """The standard deviation of each user's rewards around the mean of their group; 0 where all are equal."""
    variances: defaultdict[str, list[Tensor]] = defaultdict(list)
    for user, some in zip(users, rewards, strict=True):
        variances[user].append(some.var())
    return {user: torch.stack(values).mean().sqrt() for user, values in variances.items()}


def group_rewards(group: Sequence[Candidate]) -> Tensor:
    """The rewards [G] of a group; of one that was cut, at most the lowest of those that ended.

    No reward model has seen texts that were cut. Where all were, they compare with one another.
    """
    most = min((row.reward for row in group if row.finished), default=math.inf)
    return torch.tensor([row.reward if row.finished else min(row.reward, most) for row in group])


def _padded(rows: Iterable[Sequence[float]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
