"""A data set in token ids: what fits, what is left out, and how that is said."""

from __future__ import annotations

from typing import Any

from prlhf.dataset import Prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoder
from prlhf.model.fitting import Fitting
from prlhf.progress import Progress
from prlhf.train.demonstrations import Demonstration, distinct
from prlhf.train.trainer import EncodedSet

TRAIN, EVAL = "training", "held-out"


def encode(policy: Trained[Any], data: Prepared) -> tuple[EncodedSet, EncodedSet, Encoder]:
    """Tokenise both splits under the policy's token budgets.

    A training pair whose responses are equal in ids (its loss would be the same whatever the model) is left out; a
    held-out one counts half in accuracies. Raises PrlhfError with all the rows that do not fit, unless `skip_long`
    leaves them out, and where no training pair is left.
    """
    encoder, fitting = policy.encoder(), Fitting(policy.config.skip_long)
    train = fitting.part(f"{TRAIN} comparisons", data.train, encoder.comparison)
    held_out = fitting.part(f"{EVAL} comparisons", data.eval[: policy.config.eval_limit], encoder.comparison)
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
        encoder,
    )


def _as_set(found: list[tuple[Any, Any]], **left_out: int) -> EncodedSet:
    return EncodedSet([encoded for _, encoded in found], [row for row, _ in found], left_out)


def demonstrations(
    encoder: Encoder, data: Prepared, skip: bool, limit: int | None = None
) -> tuple[list[Demonstration], list[Demonstration], dict[str, dict[str, int]]]:
    """The distinct (prompt, chosen) pairs of both splits in token ids, and how many were left out.

    In the order of the data, at most `limit` held-out ones. Raises PrlhfError as `encode` does.
    """
    fitting = Fitting(skip)
    splits = ((TRAIN, distinct(data.train)), (EVAL, distinct(data.eval)[:limit]))
    train, held_out = (
        [Demonstration(*ids) for _, ids in fitting.part(f"{name} responses", rows, encoder.demonstration)]
        for name, rows in splits
    )
    fitting.check()
    train_long, eval_long = fitting.skipped.values()
    return train, held_out, {"train": {"too_long": train_long}, "eval": {"too_long": eval_long}}


def note_left_out(left_out: dict[str, dict[str, int]], progress: Progress) -> None:
    """Say what `encode` or `demonstrations` left out."""
    for part, name in (("train", TRAIN), ("eval", EVAL)):
        counts = left_out[part]
        if counts["too_long"]:
            progress.note(f"{counts['too_long']:,} {name} rows do not fit and were left out (skip_long)")
        if counts.get("equal"):
            what = "were left out" if part == "train" else "count half in accuracies"
            progress.note(f"{counts['equal']:,} {name} pairs are equal once they are tokens: they {what}")
