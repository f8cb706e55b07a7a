"""Slopes are those of the true margins; posteriors are those of an optimizer; many users are each user alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from prlhf.adapt.apart import gains, uncertainty, verdict
from prlhf.adapt.learn import posterior_of
from prlhf.adapt.prior import best_scale
from prlhf.model.user_fits import Choices, fit_users
from prlhf.model.user_prior import FLOOR, prior_of


def made_up(each: list[int], width: int = 3, seed: int = 0) -> Choices:
    generator = torch.Generator().manual_seed(seed)
    users = torch.repeat_interleave(torch.arange(len(each)), torch.tensor(each))
    slopes = torch.randn(len(users), width, generator=generator).double()
    return Choices(users, slopes, torch.randn(len(users), generator=generator).double(), len(each))


def curved(choices: Choices) -> Any:
    """Margins that bend: m + s.z + (s.z)^2 / 10."""

    def read(numbers: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        along = (choices.gradients[numbers] * at).sum(1)
        slopes = choices.gradients[numbers] * (1 + along / 5).unsqueeze(1)
        return choices.margins[numbers] + along + along.square() / 10, slopes

    return read


def by_scipy(choices: Choices, user: int, bend: float) -> np.ndarray:
    own = choices.users == user
    slopes, margins = choices.gradients[own].numpy(), choices.margins[own].numpy()

    def loss(z: np.ndarray) -> float:
        along = slopes @ z
        return float(np.logaddexp(0, -(margins + along + bend * along**2)).sum() + z @ z / 2)

    found: np.ndarray = minimize(loss, np.zeros(slopes.shape[1]), method="BFGS", options={"gtol": 1e-8}).x
    return found


def test_the_linear_posterior_is_an_optimizers() -> None:
    choices = made_up([6, 0, 20])
    found = posterior_of(choices)
    for user in range(3):
        np.testing.assert_allclose(found.modes[user], by_scipy(choices, user, 0.0), atol=1e-5)
    assert found.modes[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.covariances[1], torch.eye(3).double())
    assert uncertainty(found)[1] == 1
    torch.testing.assert_close(found.evidence, fit_users(choices).evidence)  # which is compared with the integral
    assert uncertainty(found)[2] < uncertainty(found)[0] < 1


def test_margins_that_bend_are_linearized_again() -> None:
    choices = made_up([8, 30, 0])
    linear, found = posterior_of(choices), posterior_of(choices, curved(choices))
    for user in range(2):
        truth = by_scipy(choices, user, 0.1)
        assert np.abs(found.modes[user].numpy() - truth).max() < 0.1
        off = [np.abs(each.modes[user].numpy() - truth).max() for each in (found, linear)]
        assert off[0] < off[1]
    assert 0 < found.passes <= 4 * 38


@pytest.mark.parametrize("bend", [False, True])
def test_many_users_are_each_user_alone(bend: bool) -> None:
    choices = made_up([5, 1, 9])
    together = posterior_of(choices, curved(choices) if bend else None)
    for user in range(3):
        one = choices.of_users(torch.tensor([user]))
        alone = posterior_of(one, curved(one) if bend else None)
        torch.testing.assert_close(alone.modes[0], together.modes[user])
        torch.testing.assert_close(alone.covariances[0], together.covariances[user])
        torch.testing.assert_close(alone.evidence[0], together.evidence[user])


def verdicts(sure: float, seed: int, count: int = 24) -> list[str]:
    """200 users with `count` choices each, from the prior (`sure` 1) or as the generic user (0)."""
    choices = made_up([count] * 200, seed=seed)
    z = sure * torch.randn(200, 3, generator=torch.Generator().manual_seed(seed + 1)).double()
    logits = choices.logits(z)
    chosen = torch.rand(len(logits), generator=torch.Generator().manual_seed(seed + 2)) < logits.sigmoid()
    sign = torch.where(chosen, 1.0, -1.0).double()
    choices = choices._replace(margins=choices.margins * sign, gradients=choices.gradients * sign.unsqueeze(1))
    return [verdict(gain) for gain in gains(choices, posterior_of(choices)).tolist()]


def test_verdicts_are_wrong_in_one_of_twenty_at_most() -> None:
    generic, own = verdicts(0.0, 3), verdicts(1.0, 5)
    assert generic.count("yes") <= 10
    assert own.count("no") <= 10
    assert own.count("yes") > 3 * generic.count("yes") + 20
    assert verdicts(1.0, 7, 120).count("yes") > 100  # what few choices leave open more of them decide


def test_the_prior_is_the_second_moment_of_rows() -> None:
    center = torch.tensor([1.0, 0.0, 2.0])
    rows = center + torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.0])
    prior = prior_of(rows, center)
    moment = (rows - center).double().T @ (rows - center).double() / 50
    expected = moment + FLOOR * moment.trace() / 3 * torch.eye(3).double()
    torch.testing.assert_close((prior.loadings @ prior.loadings.T).double(), expected, atol=1e-4, rtol=1e-4)
    long = prior_of(torch.randn(5, 100, generator=torch.Generator().manual_seed(0)), torch.zeros(100))
    assert long.loadings.shape == (100, 5)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_scale_of_the_prior_is_that_of_most_evidence(scale: float) -> None:
    """Also where five choices say little of each user, as those of trained users do."""
    choices = made_up([5] * 400, seed=1)
    choices = choices._replace(gradients=0.3 * choices.gradients, margins=0.1 * choices.margins)
    z = scale * torch.randn(400, 3, generator=torch.Generator().manual_seed(2)).double()
    drawn = torch.rand(len(choices.margins), generator=torch.Generator().manual_seed(3)).double()
    sign = torch.where(drawn < choices.logits(z).sigmoid(), 1.0, -1.0).double()
    choices = choices._replace(margins=choices.margins * sign, gradients=choices.gradients * sign.unsqueeze(1))
    assert scale / 1.5 <= best_scale(choices) <= scale * 1.5


def test_slopes_are_differences_of_true_margins(gated: Path, tmp_path: Path) -> None:
    from prlhf.adapt.slopes import margins_and_slopes
    from prlhf.dataset import read_prepared
    from prlhf.model.rewards import load_rewards

    trained, rewards = load_rewards(gated, "cpu")
    rewards.model.requires_grad_(False)
    dataset = json.loads((gated / "model/prlhf.json").read_text())["train"]["dataset"]
    encoder = trained.encoder()
    data = [encoder.comparison(row) for row in read_prepared(Path(dataset)).eval[:3]]
    rows, unit = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    before = rewards.model.users.gates.offsets.weight.clone()  # type: ignore[union-attr]
    margins, slopes = margins_and_slopes(rewards, data, rows, unit)
    for k in range(4):
        up, down = (margins_and_slopes(rewards, data, rows + d * unit[k], unit)[0] for d in (0.05, -0.05))
        torch.testing.assert_close((up - down) / 0.1, slopes[:, k], atol=2e-2, rtol=2e-2)
    for i in range(3):  # each alone, and every weight as it was
        torch.testing.assert_close(
            margins_and_slopes(rewards, data[i : i + 1], rows[i : i + 1], unit)[0][0], margins[i], atol=1e-4, rtol=1e-4
        )
    assert torch.equal(before, rewards.model.users.gates.offsets.weight)  # type: ignore[union-attr]
    with torch.no_grad():
        generic = margins_and_slopes(rewards, data, torch.zeros(3, 4), unit)[0]
        chosen, rejected = rewards(data, [0, 0, 0])
    torch.testing.assert_close(generic, (chosen - rejected).double(), atol=1e-4, rtol=1e-4)
