"""Hidden states of responses under the base: what the base makes of a response, before any training.

Like the reference's log-probs they depend on base, prompt and response only, and are kept on disk for all runs. It
takes one forward pass over the distinct responses, without logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.files import cache_folder
from prlhf.model.base_cache import BaseCache, base_key
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.personalized import Personalized, unwrapped
from prlhf.model.prefix_tree import Pack
from prlhf.model.readings import Reading, Rows
from prlhf.model.reference import BaseValues, pairs_of
from prlhf.progress import SILENT, Progress

AT = (1 / 3, 2 / 3)  # of the base's depth: where the hidden states are taken


class ResponseStates(BaseValues):
    """The mean hidden states of responses at the depths `AT` of the base, [2 d] in float32."""

    def __init__(self, engine: Engine, cache: BaseCache | None = None) -> None:
        def read(readings: Sequence[Reading]) -> Tensor:
            return engine.over(readings, 0, lambda rows: mean_states(engine.model, rows))

        super().__init__("hidden states", read, cache)

    def differences(self, data: Sequence[Encoded]) -> Tensor:
        """[n, 2 d + 1] for n comparisons: the chosen response's states and log length less the rejected one's."""
        pairs = [pairs_of(comparison) for comparison in data]
        chosen, rejected = (self.of(list(side)) for side in zip(*pairs, strict=True))
        states = torch.from_numpy(np.stack(chosen) - np.stack(rejected))
        lengths = torch.tensor([[len(c[1]), len(r[1])] for c, r in pairs]).clamp(min=1).log()
        return torch.cat([states, lengths[:, :1] - lengths[:, 1:]], 1)


def open_states(lm: Any, progress: Progress = SILENT) -> BaseCache:
    """The cache of the hidden states of the base under `lm`. Call it before the weights are trained."""
    width = len(AT) * unwrapped(lm).get_input_embeddings().weight.shape[1]
    return BaseCache(cache_folder() / "states" / base_key(lm), progress, width)


def mean_states(model: Personalized, rows: Rows | Pack) -> Tensor:
    """Means [N, 2 d] in fp32 of the hidden states over each response's tokens, under the base alone.

    Taken are the states from which the tokens are predicted: those of the prompt's last token and of the response
    without its own last token.
    """
    layers = model.base_layers(rows)
    picked = [layers[round(depth * (len(layers) - 1))] for depth in AT]
    return torch.cat([_over_responses(hidden.float(), rows) for hidden in picked], 1)


def _over_responses(hidden: Tensor, rows: Rows | Pack) -> Tensor:
    """The mean [N, d] of `hidden` [N, L, d] (of a pack [1, T, d]) over the columns that predict a response."""
    if isinstance(rows, Pack):
        total = hidden.new_zeros(rows.readings, hidden.shape[2]).index_add(0, rows.owners, hidden[0, rows.columns])
        return total / torch.bincount(rows.owners, minlength=rows.readings).clamp(min=1).unsqueeze(1)
    mask = rows.mask[:, rows.start :].to(hidden.dtype)
    total = torch.einsum("nld,nl->nd", hidden[:, rows.start - 1 : -1], mask)
    return total / mask.sum(1, keepdim=True).clamp(min=1)
