"""Implicit rewards of comparisons and what they say per user (accuracy, margins).

The implicit reward of a response is beta (log pi_P(y|x,u) - log pi_SFT(y|x)) (paper, Eq. 5 and section 4.4).
Used by training for its evaluations and by `prlhf judge --checkpoint`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prlhf.model.encoding import Encoded, pad_rows, policy_rows
from prlhf.model.personalized import PersonalizedLM
from prlhf.progress import SILENT, Progress


class Reference:
    """Log-probs of responses under the base, computed once per (prompt, response) and kept in memory.

    The reference sees neither the user's id nor text about the user, so one value serves every user and both
    terms. Filled as batches come by; with full fine-tuning it must be filled before the first step.
    """

    def __init__(self, model: PersonalizedLM, pad: int) -> None:
        self._model, self._pad = model, pad
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def log_probs(self, batch: Sequence[Encoded]) -> Tensor:
        """[2B] for B comparisons: chosen first, then rejected."""
        wanted = [(tuple(e.prompt), tuple(e.chosen)) for e in batch]
        wanted += [(tuple(e.prompt), tuple(e.rejected)) for e in batch]
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self._known]
        if missing:
            rows = pad_rows(
                [list(p) for p, _ in missing], [list(r) for _, r in missing], [0] * len(missing), 0, self._pad
            )
            values = self._model.reference(rows.to(self._model.lm.device)).tolist()
            self._known.update(zip(missing, values, strict=True))
        return torch.tensor([self._known[pair] for pair in wanted])

    def fill(self, data: Sequence[Encoded], batch_size: int, progress: Progress = SILENT) -> None:
        progress.start("reference", len(data))
        for start in range(0, len(data), batch_size):
            self.log_probs(data[start : start + batch_size])
            progress.advance(len(data[start : start + batch_size]))
        progress.finish()


@dataclass(frozen=True)
class Scored:
    """Implicit rewards of one comparison, as one user."""

    chosen: float
    rejected: float

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected


def score(
    model: PersonalizedLM,
    reference: Reference,
    data: Sequence[Encoded],
    users: Sequence[int],
    beta: float,
    pad: int,
    batch_size: int,
    progress: Progress = SILENT,
) -> list[Scored]:
    """Score `data` as `users` (one index per comparison), in the order given."""
    training = model.training
    model.eval()
    order = sorted(range(len(data)), key=lambda i: len(data[i].prompt) + len(data[i].chosen))  # less padding
    scored: dict[int, Scored] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = [data[i] for i in chunk]
        rows = policy_rows(batch, [users[i] for i in chunk], model.users.tokens, pad).to(model.lm.device)
        with torch.no_grad():
            log_probs = model(rows).cpu()
        rewards = (beta * (log_probs - reference.log_probs(batch))).view(2, len(chunk)).tolist()
        scored |= {i: Scored(c, r) for i, c, r in zip(chunk, *rewards, strict=True)}
        progress.advance(len(chunk))
    model.train(training)
    return [scored[i] for i in range(len(data))]


def accuracy_by(groups: Sequence[str], scored: Sequence[Scored]) -> dict[str, float]:
    """Share of comparisons with a positive margin, per group; a margin of exactly 0 counts half."""
    hits: defaultdict[str, list[float]] = defaultdict(list)
    for group, item in zip(groups, scored, strict=True):
        hits[group].append(0.5 if item.margin == 0 else float(item.margin > 0))
    return {group: sum(values) / len(values) for group, values in hits.items()}


def margins_by(groups: Sequence[str], scored: Sequence[Scored]) -> dict[str, float]:
    """Mean margin per group, in units of reward."""
    margins: defaultdict[str, list[float]] = defaultdict(list)
    for group, item in zip(groups, scored, strict=True):
        margins[group].append(item.margin)
    return {group: sum(values) / len(values) for group, values in margins.items()}


def summarise(user_ids: Sequence[str], as_user: Sequence[Scored], as_generic: Sequence[Scored]) -> dict[str, Any]:
    """Per-user accuracy and margin, their macro average, the worst tenth of users, and the generic user's.

    `generic`: the same comparisons scored as user 0, micro-averaged; `generic_by_user` the same per user.
    """
    accuracy = accuracy_by(user_ids, as_user)
    ranked = sorted(accuracy.values())
    worst = ranked[: max(1, len(ranked) // 10)]
    generic = accuracy_by(["all"] * len(as_generic), as_generic)
    return {
        "accuracy_macro": sum(ranked) / len(ranked),
        "accuracy_worst_tenth": sum(worst) / len(worst),
        "accuracy_generic": generic["all"],
        "margin_mean": sum(s.margin for s in as_user) / len(as_user),
        "accuracy_by_user": accuracy,
        "margin_by_user": margins_by(user_ids, as_user),
        "generic_by_user": accuracy_by(user_ids, as_generic),
    }
