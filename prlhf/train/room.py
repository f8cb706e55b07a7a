"""How the rows of a prepared data set fit into a base's context, from its tokenizer and config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.model.base import Base
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.skeleton import load_skeleton

PERCENTILES = (50, 90, 99, 100)


def base_for(model: str) -> Base:
    """The base `model` without its weights. Raises PrlhfError where it cannot be loaded."""
    return load_skeleton(model, torch.float32)[0]


def room(dataset: Path, base: Base) -> dict[str, Any]:
    """What training with default settings would find of both splits of `dataset`.

    Returns the context, the rows of each split, how many of them do not fit (and, in words, which), and percentiles
    of the tokens of those that do: user tokens, text, prompt and the longer response.
    """
    data = read_prepared(dataset)
    config = TrainConfig(dataset=str(dataset), model=base.name)
    policy: Trained[Any] = Trained(base.lm, base, config, data.user_ids, {}, conversational=data.conversational)
    encoder, fitting = policy.encoder(), Fitting(skip=True)
    found = [
        encoded
        for part, rows in (("training comparisons", data.train), ("held-out comparisons", data.eval))
        for _, encoded in fitting.part(part, rows, encoder.comparison)
    ]

    def tokens(e: Encoded) -> int:
        return config.user_tokens + len(e.text) + len(e.prompt) + max(len(e.chosen), len(e.rejected))

    lengths = np.percentile([tokens(e) for e in found], PERCENTILES).tolist() if found else []
    return {
        "model": base.name,
        "context": encoder.limit,
        "rows": fitting.rows,
        "do_not_fit": fitting.skipped,
        "why": fitting.summary() if any(fitting.skipped.values()) else None,
        "cut": encoder.cut,
        "tokens": {f"{p} %": round(n) for p, n in zip(PERCENTILES, lengths, strict=False)},
    }
