"""A reward model: the trunk of a causal LM behind a user model, with a scalar head instead of the vocabulary's.

r(x, y, u) is read off the hidden state of the last real token of the response: its end-of-text token, or its last
token where it was cut. transformers' own sequence classification takes the last column when it is given embeddings,
which is padding in all rows but the longest, so the position comes from the mask here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.encoding import Rows
from prlhf.model.personalized import Personalized, trunk_of, unwrapped
from prlhf.model.prefix_tree import Pack
from prlhf.model.users import UserModel


class RewardModel(Personalized):
    """r(x, y, u) (P-RM, version 1 of the paper). The head is fp32 whatever the trunk's precision.

    The head starts from a normal of variance 1 / (d + 1), the same for every seed. From zero it would hold back what
    stands before it: after 60 steps of the demo the worst user's accuracy was 0 then, and 77 % so.
    """

    def __init__(self, lm: Any, users: UserModel) -> None:
        super().__init__(lm, users)
        trunk_of(lm)
        vocabulary = unwrapped(lm).get_output_embeddings().weight
        if vocabulary is not self._embeddings().weight:
            vocabulary.requires_grad_(False)  # full fine-tuning: nothing reads it
        width = vocabulary.shape[1]
        start = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * (width + 1) ** -0.5
        self.head = nn.Linear(width, 1, bias=False, device=vocabulary.device, dtype=torch.float32)
        self.head.weight.data.copy_(start)

    @override
    def rates(self, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
        """The head starts anew, as the user model does, and goes with it."""
        return [*super().rates(config), (list(self.head.parameters()), config.user_lr)]

    @override
    def forward(self, rows: Rows | Pack) -> Tensor:
        """Rewards [N] of the rows' responses, in units of log-odds (Bradley-Terry). No logits are computed."""
        hidden = self.hidden(self.embed(rows), rows)
        if isinstance(rows, Pack):
            last = hidden[0, rows.lasts]
        else:
            last = hidden[torch.arange(len(hidden), device=hidden.device), last_real(rows.mask)]
        return self.head(last.float()).squeeze(1)  # type: ignore[no-any-return]


def last_real(mask: Tensor) -> Tensor:
    """Column [N] of the last 1 in each row of a mask [N, L], wherever its padding stands."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
