"""What the next token of each row may look at, when rows of unequal lengths start at column 0 of one cache.

transformers measures causality and windows in columns of the cache, counted from its end, as if all rows ended there.
These masks measure them in each row's own positions, and are handed over whole (4D), which transformers takes as they
are: a float mask, since a bool one is silently wrong with eager attention, and for models that mix kinds of layers one
mask for each kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prlhf.model.windows import FULL, SLIDING, window_of


def decode_masks(config: Any, lengths: Tensor, end: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """For one token after each row's `lengths` [N] earlier ones: masks [N, 1, 1, end], 0 or the lowest number."""
    column = torch.arange(end, device=lengths.device)
    past = column <= lengths[:, None]
    window = window_of(config)
    if window is None:
        return _float(past, dtype)
    near = _float(past & (column > lengths[:, None] - window), dtype)
    return near if getattr(config, "layer_types", None) is None else {FULL: _float(past, dtype), SLIDING: near}


def _float(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, lowest)[:, None, None]


def known_kinds(config: Any) -> bool:
    """Whether every layer's attention is of a kind that these masks can say."""
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    others = ("attention_types", "alibi", "attention_chunk_size")
    return kinds <= {FULL, SLIDING} and not any(getattr(config, name, None) for name in others)
