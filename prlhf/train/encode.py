"""A data set in token ids: what fits into the model's context, what is left out, and how that is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.dataset import Comparison, Prepared, prompt_id, read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.base import Base, load_skeleton
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded, Encoder
from prlhf.model.fitting import Fitting
from prlhf.progress import Progress

TRAIN, EVAL = "training", "held-out"
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a response to imitate, in token ids; the response ends where its turn does unless it was cut."""

    prompt: list[int]
    response: list[int]
    user_index: int = 0  # the generic user, the only one of supervised fine-tuning


class EncodedSet(Dataset[Any]):
    """Rows in token ids, with the comparisons they come from and counts of those that were left out, by reason."""

    def __init__(
        self, encoded: Sequence[Any], rows: Sequence[Comparison], left_out: dict[str, int] | None = None
    ) -> None:
        self.encoded, self.rows, self.left_out = list(encoded), list(rows), left_out or {}

    def __len__(self) -> int:
        return len(self.encoded)

    @override
    def __getitem__(self, index: int) -> Any:
        return self.encoded[index]


Splits = tuple[EncodedSet, EncodedSet]  # to train on, and held out


def encode(policy: Trained[Any], data: Prepared) -> tuple[EncodedSet, EncodedSet, Encoder]:
    """Both splits in token ids, as the policy's objective needs them; the encoder has counts of what it cut.

    Raises:
        PrlhfError: rows do not fit (all are named), unless `skip_long` leaves them out; or no training row is left.
    """
    encoder, fitting = policy.encoder(), Fitting(policy.config.skip_long)
    rows_of = _demonstrations if policy.config.objective == "sft" else _comparisons
    train, held_out = rows_of(encoder, fitting, data, policy.config.eval_limit)
    return train, held_out, encoder


def _comparisons(encoder: Encoder, fitting: Fitting, data: Prepared, limit: int | None) -> Splits:
    """A training pair whose responses are equal in ids is left out: its loss does not depend on the model.

    A held-out pair of that kind counts half in accuracies.
    """
    train = fitting.part(f"{TRAIN} comparisons", data.train, encoder.comparison)
    held_out = fitting.part(f"{EVAL} comparisons", data.eval[:limit], encoder.comparison)
    fitting.check()
    different = [(row, e) for row, e in train if e.chosen != e.rejected]
    if not different:
        raise PrlhfError(
            f"chosen and rejected are equal in tokens in all {len(train):,} training comparisons",
            "see whether max_tokens cuts them where they still agree",
        )
    train_long, eval_long = fitting.skipped.values()
    equal = sum(e.chosen == e.rejected for _, e in held_out)
    return (
        _as_set(different, too_long=train_long, equal=len(train) - len(different)),
        _as_set(held_out, too_long=eval_long, equal=equal),
    )


def _demonstrations(encoder: Encoder, fitting: Fitting, data: Prepared, limit: int | None) -> Splits:
    """The distinct (prompt, chosen) pairs of both splits, in the order of the data, at most `limit` held-out ones."""

    def demonstration(row: Comparison) -> Demonstration:
        return Demonstration(*encoder.demonstration(row))

    train = fitting.part(f"{TRAIN} responses", distinct(data.train), demonstration)
    held_out = fitting.part(f"{EVAL} responses", distinct(data.eval)[:limit], demonstration)
    fitting.check()
    train_long, eval_long = fitting.skipped.values()
    return _as_set(train, too_long=train_long), _as_set(held_out, too_long=eval_long)


def distinct(rows: Sequence[Comparison]) -> list[Comparison]:
    """The first comparison of each (prompt, chosen) pair: several users may have chosen the same response."""
    first: dict[tuple[str, str], Comparison] = {}
    for row in rows:
        first.setdefault((prompt_id(row.prompt), prompt_id(row.chosen)), row)
    return list(first.values())


def _as_set(found: list[tuple[Comparison, Any]], **left_out: int) -> EncodedSet:
    return EncodedSet([encoded for _, encoded in found], [row for row, _ in found], left_out)


def lengths_of(row: Encoded | Demonstration, user_tokens: int) -> tuple[int, int]:
    """The tokens before the response, and those of the longer response."""
    if isinstance(row, Demonstration):
        return len(row.prompt), len(row.response)
    return user_tokens + len(row.text + row.prompt), max(len(row.chosen), len(row.rejected))


def note_left_out(left_out: dict[str, dict[str, int]], progress: Progress) -> None:
    """Say what `encode` left out of the splits `train` and `eval`."""
    for part, name in (("train", TRAIN), ("eval", EVAL)):
        counts = left_out[part]
        if counts["too_long"]:
            progress.note(f"{counts['too_long']:,} {name} rows do not fit and were left out (skip_long)")
        if counts.get("equal"):
            what = "were left out" if part == "train" else "count half in accuracies"
            progress.note(f"{counts['equal']:,} {name} pairs are equal once they are tokens: they {what}")


# ---- how much of the context a data set takes, without the model's weights ----


def base_for(model: str) -> Base:
    """The base `model` without its weights. Raises PrlhfError if it cannot be loaded."""
    return load_skeleton(model, torch.float32)[0]


def rows_in_context(dataset: Path, base: Base) -> dict[str, Any]:
    """What training with default settings would find in both splits of `dataset`.

    Returns the context, the rows of each split, how many of them do not fit (and, in words, which), and percentiles
    of the tokens of those that do: user tokens, text, prompt and the longer response.
    """
    data = read_prepared(dataset)
    config = TrainConfig(dataset=str(dataset), model=base.name)
    policy: Trained[Any] = Trained(base.lm, base, config, data.user_ids, {}, conversational=data.conversational)
    encoder, fitting = policy.encoder(), Fitting(skip=True)
    found = [
        encoded
        for part, rows in ((f"{TRAIN} comparisons", data.train), (f"{EVAL} comparisons", data.eval))
        for _, encoded in fitting.part(part, rows, encoder.comparison)
    ]

    tokens = [sum(lengths_of(row, config.slots)) for row in found]
    lengths = np.percentile(tokens, PERCENTILES).tolist() if found else []
    return {
        "model": base.name,
        "context": encoder.limit,
        "rows": fitting.rows,
        "do_not_fit": fitting.skipped,
        "why": fitting.summary() if any(fitting.skipped.values()) else None,
        "cut": encoder.cut,
        "tokens": {f"{p} %": round(n) for p, n in zip(PERCENTILES, lengths, strict=False)},
    }
