"""Implicit rewards, and what is said of them per user, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prlhf.config import TrainConfig
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.readings import Rows
from prlhf.model.reference import Reference
from prlhf.model.rewards import ImplicitRewards, Scored, accuracy_by, accuracy_summary, score
from prlhf.model.user_models import build_user_model


class Counting(nn.Module):
    """In place of a PersonalizedLM: log-probs are minus the response's ids' sum, less ten times the user."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = nn.Linear(1, 1)
        self.lm.device = torch.device("cpu")  # type: ignore[assignment]
        config = TrainConfig(user_model="uniform", user_tokens=1)
        self.users = build_user_model(config, 1, torch.zeros(4, 2))
        self.asked: list[tuple[int, ...]] = []

    def reference(self, rows: Rows) -> Tensor:
        assert not rows.slots.any()  # the reference sees no user
        for ids, mask in zip(rows.ids, rows.mask, strict=True):
            self.asked.append(tuple(ids[mask.bool()].tolist()))
        return -(rows.ids * rows.mask)[:, rows.start :].sum(1).float() / 2

    def forward(self, rows: Rows) -> Tensor:
        return -(rows.ids * rows.mask)[:, rows.start :].sum(1).float() - 10 * rows.user_indices


def engine_on(model: Any) -> Engine:
    return Engine(model, pad=0, trees=False)


A = Encoded(text=[9], prompt=[1, 2], chosen=[4], rejected=[5, 5], user_index=1)
B = Encoded(text=[], prompt=[1, 2], chosen=[4], rejected=[6], user_index=2)
C = Encoded(text=[], prompt=[3], chosen=[4], rejected=[8, 8, 8], user_index=0)


def test_the_reference_reads_each_response_once() -> None:
    """A and B share prompt and chosen response; neither text nor user makes them two."""
    model = Counting()
    reference = Reference(engine_on(model))
    assert reference.log_probs([A, B]).tolist() == [-2, -2, -5, -3]
    assert sorted(model.asked) == [(1, 2, 4), (1, 2, 5, 5), (1, 2, 6)]
    assert reference.log_probs([B, C, A]).tolist() == [-2, -2, -2, -3, -12, -5]
    assert sorted(model.asked[3:]) == [(3, 4), (3, 8, 8, 8)]


def test_a_filled_reference_does_not_run_the_model() -> None:
    model = Counting()
    reference = Reference(engine_on(model))
    reference.fill([A, B, C], batch_size=2)
    assert len(model.asked) == 5
    reference.log_probs([C, B, A])
    assert len(model.asked) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scores_come_in_the_order_given(batch_size: int) -> None:
    """beta 0.5: half of (log pi - log ref) = half of (-sum - 10 u + sum / 2)."""
    model: Any = Counting()
    model.train()
    rewards = ImplicitRewards(engine_on(model), Reference(engine_on(model)), beta=0.5)
    scored = score(rewards, [A, C, B], [1, 0, 2], batch_size)
    assert scored == [Scored(-6.0, -7.5), Scored(-1.0, -6.0), Scored(-11.0, -11.5)]
    assert [s.margin for s in scored] == [1.5, 5.0, 0.5]
    assert model.training


def of(*margins: float) -> list[Scored]:
    return [Scored(margin, 0.0) for margin in margins]


def test_accuracy_counts_a_margin_of_zero_half() -> None:
    assert accuracy_by(["a", "a", "b", "a"], of(1.0, -1.0, 2.0, 0.0)) == {"a": 0.5, "b": 1.0}


def test_summary_by_hand() -> None:
    users = ["ann", "ann", "ann", "ann", "bob"]
    found = accuracy_summary(users, [1, 1, 1, 1, 0], of(1, 2, 3, -2, -1), of(-1, 2, -3, 2, 1))
    assert found == {
        "accuracy_macro": 0.375,  # ann 3/4, bob 0: each user counts once
        "accuracy_seen": 0.75,
        "accuracy_unseen": 0.0,  # bob's index is 0
        "accuracy_worst_tenth": 0.0,
        "accuracy_generic": 0.6,  # 3 of 5: each comparison counts once
        "margin_mean": 0.6,
        "accuracy_by_user": {"ann": 0.75, "bob": 0.0},
        "margin_by_user": {"ann": 1.0, "bob": -1.0},
        "generic_by_user": {"ann": 0.5, "bob": 1.0},
    }


def test_the_worst_tenth_of_twenty_users_are_two() -> None:
    users = [f"u{i}" for i in range(20) for _ in range(2)]
    margins = [1.0] * 40
    margins[6], margins[20], margins[21] = -1.0, -1.0, -1.0  # u3 at 1/2, u10 at 0
    found = accuracy_summary(users, [1] * 40, of(*margins), of(*margins))
    assert found["accuracy_worst_tenth"] == 0.25
    assert (found["accuracy_seen"], found["accuracy_unseen"]) == (found["accuracy_macro"], None)
