"""`prlhf data show` as a function: rows as training reads them, comparisons per user, and users' agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from prlhf.config import TrainConfig
from prlhf.dataset import Comparison, Prepared, read_prepared
from prlhf.errors import PrlhfError, nearest
from prlhf.model.base import load_skeleton
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded, Encoder
from prlhf.model.fitting import TooLong
from prlhf.train.encode import EVAL, TRAIN, Demonstration
from prlhf.train.run import with_base, without_users
from prlhf.view.agreement import agreement
from prlhf.view.pieces import Piece, pieces_of
from prlhf.view.texts import decoded, decoded_one_by_one

ENDLESS = 2**31  # tokens: a context that nothing is cut for
EQUAL = "chosen and rejected are equal in tokens"


def view(folder: Path, config: TrainConfig, user: str | None, rows: int, tokens: bool) -> dict[str, Any]:
    """What is in the prepared data set `folder`, and its first `rows` rows as a run with `config` would read them.

    Args:
        folder: the data set.
        config: settings of training: the base, its lengths, and what users bring along.
        user: show only this user's rows; None: all users'.
        rows: how many rows to show, those of the training split first.
        tokens: give ids and texts of single tokens.

    Raises:
        PrlhfError: the data or the base cannot be read, the user is unknown, or a row is refused by the base.
    """
    data = read_prepared(folder)
    if user is not None and user not in (known := [one.id for one in data.users]):
        raise PrlhfError(f"{folder} has no user '{user}'", nearest(user, known))
    config = with_base(without_users(config), data)
    base = load_skeleton(str(config.model), torch.float32, config.trust_remote_code)[0]
    policy: Trained[Any] = Trained(base.lm, base, config, data.user_ids, {}, conversational=data.conversational)
    found = RowViewer(policy, tokens)
    everything = [*((TRAIN, row) for row in data.train), *((EVAL, row) for row in data.eval)]
    wanted = ((part, row) for part, row in everything if user is None or row.user_id == user)
    return {
        "dataset": str(folder),
        "model": config.model,
        "objective": config.objective,
        "context": found.encoder.limit,
        "user": user,
        "comparisons": {"train": len(data.train), "eval": len(data.eval)},
        "users": counts_by_user(data),
        "agreement": agreement(row for _, row in everything),
        "rows": [found.shown(part, row) for part, row in islice(wanted, rows)],
    }


def counts_by_user(data: Prepared) -> list[dict[str, Any]]:
    """The users of a data set with their comparisons in both splits, those with the most first."""
    train, held_out = Counter(row.user_id for row in data.train), Counter(row.user_id for row in data.eval)
    ranked = sorted(data.users, key=lambda user: -train[user.id] - held_out[user.id])
    return [
        {"user_id": user.id, "train": train[user.id], "eval": held_out[user.id], "text": user.text} for user in ranked
    ]


class RowViewer:
    """Shows rows as the policy's own encoder reads them, beside what it would read in a context without a limit."""

    def __init__(self, policy: Trained[Any], tokens: bool) -> None:
        self.encoder, self._tokens, self._sft = policy.encoder(), tokens, policy.config.objective == "sft"
        self._whole = replace(policy.encoder(), limit=ENDLESS, prompt_limit=None)

    def shown(self, part: str, row: Comparison) -> dict[str, Any]:
        """A row of the split `part` as training reads it; `left_out` says why training would leave it out."""
        whole = self._encoded(self._whole, row)
        try:
            encoded, why = self._encoded(self.encoder, row), None
        except TooLong as error:
            encoded, why = whole, error.why
        if part == TRAIN and isinstance(encoded, Encoded) and encoded.chosen == encoded.rejected:
            why = EQUAL
        pieces = pieces_of(encoded, whole, self.encoder.user_tokens)
        return {
            "id": row.id,
            "split": part,
            "user_id": row.user_id,
            "user_index": 0 if self._sft else row.user_index,
            "left_out": why,
            "tokens": sum(len(piece.ids) for piece in pieces if not piece.cut),
            "cut": sum(len(piece.ids) for piece in pieces if piece.cut),
            "pieces": self._texts(pieces),
        }

    def _encoded(self, encoder: Encoder, row: Comparison) -> Encoded | Demonstration:
        """As `prlhf.train.encode` does for the objective."""
        return Demonstration(*encoder.demonstration(row)) if self._sft else encoder.comparison(row)

    def _texts(self, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """The pieces with the text of their ids."""
        found = []
        for piece in pieces:
            values = piece._asdict() | {"tokens": len(piece.ids), "text": decoded(self.encoder.tokenizer, piece.ids)}
            ids = values.pop("ids")
            if self._tokens:
                values |= {"ids": ids, "texts": decoded_one_by_one(self.encoder.tokenizer, ids)}
            found.append(values)
        return found
