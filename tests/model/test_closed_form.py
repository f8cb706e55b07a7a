"""The closed form: held-out choices by codes of the frozen base, on made-up hidden states whose tastes are planted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from prlhf.errors import NotFinite
from prlhf.model import closed_form as module
from prlhf.model.closed_form import ClosedForm, closed_form, features_of
from prlhf.model.encoding import Encoded
from prlhf.model.response_states import ResponseStates

USERS, EACH, TESTED, WIDTH, TASTES = 60, 32, 12, 12, 3


class Made(ResponseStates):
    """Differences of hidden states that are made up: comparison i, whose prompt is [i], has row i of `rows`."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def differences(self, data: Sequence[Encoded]) -> Tensor:
        return self.rows[[comparison.prompt[0] for comparison in data]]


def crowd(seed: int = 0) -> tuple[Made, list[Encoded], list[Encoded]]:
    """Comparisons to learn from and held-out ones, of users 1 to 60 in turn.

    For each user there is another with the opposite taste. Hidden states are mixtures of features, of very different
    sizes.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    half = normal(USERS // 2, TASTES)
    tastes = torch.cat([half, -half])
    owners = torch.arange(USERS).repeat(EACH + TESTED)
    features = normal(len(owners), WIDTH)
    logits = 2 * (features[:, :TASTES] * tastes[owners]).sum(1)
    chosen = torch.rand(len(owners), generator=generator) < logits.sigmoid()
    rows = torch.where(chosen.unsqueeze(1), features, -features) @ normal(WIDTH, WIDTH) * torch.logspace(-3, 3, WIDTH)
    data = [Encoded([], [i], [1], [2], user_index=1 + owner) for i, owner in enumerate(owners.tolist())]
    return Made(rows), data[: USERS * EACH], data[USERS * EACH :]


def accuracy(found: ClosedForm, states: Made, data: Sequence[Encoded], user_indices: Sequence[int]) -> float:
    return (found.margins(states, data, user_indices) > 0).double().mean().item()


def indices(data: Sequence[Encoded]) -> list[int]:
    return [comparison.user_index for comparison in data]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_tastes_predict_held_out_choices(seed: int) -> None:
    """As themselves; as the generic user and as the next user it is a coin."""
    states, data, held_out = crowd(seed)
    found = closed_form(states, data, USERS, seed)
    assert len(found.codes) == USERS
    assert found.codes.shape[1] >= TASTES
    assert accuracy(found, states, held_out, indices(held_out)) > 0.75
    assert accuracy(found, states, held_out, [0] * len(held_out)) == pytest.approx(0.5, abs=0.06)
    assert accuracy(found, states, held_out, [1 + i % USERS for i in indices(held_out)]) < 0.6


def test_a_user_without_choices_is_the_generic_one() -> None:
    states, data, held_out = crowd()
    found = closed_form(states, [row for row in data if row.user_index != 7], USERS, seed=0)
    generic = found.margins(states, held_out, [0] * len(held_out))
    assert torch.equal(found.margins(states, held_out, [7] * len(held_out)), generic)
    assert not torch.equal(found.margins(states, held_out, [8] * len(held_out)), generic)


def test_choices_of_chance_leave_everyone_the_generic_user() -> None:
    states, data, held_out = crowd()
    coin = torch.randint(2, (len(states.rows), 1), generator=torch.Generator().manual_seed(0)) * 2 - 1
    chance = Made(states.rows * coin)
    found = closed_form(chance, data, USERS, seed=0)
    assert found.codes.shape == (USERS, 0)
    generic = found.margins(chance, held_out, [0] * len(held_out))
    assert torch.equal(found.margins(chance, held_out, indices(held_out)), generic)


def test_features_come_from_a_sample_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts change nothing; a sample of the comparisons finds nearly the same users."""
    states, data, held_out = crowd()
    whole = closed_form(states, data, USERS, seed=0)
    monkeypatch.setattr(module, "AT_ONCE", 7)
    torch.testing.assert_close(
        features_of(states, data, whole.weights), states.rows[: len(data)] @ whole.weights.float()
    )
    monkeypatch.setattr(module, "SAMPLE", 500)
    sampled = closed_form(states, data, USERS, seed=0)
    assert not torch.equal(sampled.weights, whole.weights)
    assert accuracy(sampled, states, held_out, indices(held_out)) > 0.75


@pytest.mark.parametrize("sample", [10, 10**4])
def test_hidden_states_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    """In the sample and outside of it."""
    monkeypatch.setattr(module, "SAMPLE", sample)
    states, data, _ = crowd()
    states.rows[5, 0] = torch.inf
    assert 5 not in module.drawn(len(data), 10, 0)
    with pytest.raises(NotFinite, match="hidden states of some responses are not finite"):
        closed_form(states, data, USERS, seed=0)
