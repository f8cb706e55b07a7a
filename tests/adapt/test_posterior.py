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
from prlhf.adapt.learn import MUCH, NARROWER, fit_true, posterior_of
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
    found = fit_true(choices)
    for user in range(3):
        np.testing.assert_allclose(found.modes[user], by_scipy(choices, user, 0.0), atol=1e-5)
    assert found.modes[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.covariances[1], torch.eye(3).double())
    assert uncertainty(found)[1] == 1
    torch.testing.assert_close(found.evidence, fit_users(choices).evidence)  # which is compared with the integral
    assert uncertainty(found)[2] < uncertainty(found)[0] < 1


def test_margins_that_bend_are_linearized_again() -> None:
    choices = made_up([8, 30, 0])
    linear, found = fit_true(choices), fit_true(choices, curved(choices))
    for user in range(2):
        truth = by_scipy(choices, user, 0.1)
        assert np.abs(found.modes[user].numpy() - truth).max() < 0.1
        off = [np.abs(each.modes[user].numpy() - truth).max() for each in (found, linear)]
        assert off[0] < off[1]
    assert 0 < found.passes <= 4 * 38


@pytest.mark.parametrize("bend", [None, "curved", "fading"])
def test_many_users_are_each_user_alone(bend: str | None) -> None:
    def bent(choices: Choices) -> Any:
        return {"curved": curved, "fading": fading}[bend](choices) if bend else None

    choices = made_up([5, 1, 9]) if bend != "fading" else sure([3, 40, 41], wide=5.0)
    together = posterior_of(choices, bent(choices))
    for user in range(3):
        one = choices.of_users(torch.tensor([user]))
        alone = posterior_of(one, bent(one))
        torch.testing.assert_close(alone.modes[0], together.modes[user])
        torch.testing.assert_close(alone.covariances[0], together.covariances[user])
        torch.testing.assert_close(alone.evidence[0], together.evidence[user])


def fading(choices: Choices) -> Any:
    """Margins that are linear in the user up to about 2, and fade further out."""

    def read(numbers: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        along = (choices.gradients[numbers] * at).sum(1)
        left = torch.exp(-(along**2) / 8)
        slopes = choices.gradients[numbers] * (left * (1 - along**2 / 4)).unsqueeze(1)
        return choices.margins[numbers] + along * left, slopes

    return read


def sure(each: list[int], wide: float) -> Choices:
    """Users who are always sure, under a prior that is `wide` for slopes of 1."""
    choices = made_up(each, seed=1)
    z = torch.randn(len(each), 3, generator=torch.Generator().manual_seed(2)).double()
    sign = choices.logits(5 * z).sign()
    return choices._replace(
        margins=0.3 * choices.margins * sign, gradients=wide * choices.gradients * sign.unsqueeze(1)
    )


def test_many_choices_bring_users_back_to_where_margins_are_as_they_were_read() -> None:
    """Of twelve users who are sure the ones with many choices are learned under the narrower prior."""
    choices = sure([2] * 6 + [40] * 6, wide=5.0)
    wide, found = fit_true(choices, fading(choices)), posterior_of(choices, fading(choices))
    moved = found.evidence != wide.evidence
    assert not moved[:6].any()
    assert moved[6:].sum() >= 3
    assert (found.evidence - wide.evidence)[moved].min() > MUCH
    narrower = choices.scaled(NARROWER)
    alone = fit_true(narrower, fading(narrower))
    torch.testing.assert_close(found.modes[moved], NARROWER * alone.modes[moved])
    torch.testing.assert_close(found.covariances[moved], NARROWER**2 * alone.covariances[moved])
    own = moved[choices.users]
    torch.testing.assert_close(found.margins, torch.where(own, alone.margins, wide.margins))
    torch.testing.assert_close(found.margins, fading(choices)(torch.arange(252), found.modes[choices.users])[0])
    assert (found.margins[own] > 0).sum() > (wide.margins[own] > 0).sum()


def test_nothing_more_is_read_where_margins_are_linear() -> None:
    """Nor for users whose choices say nothing of a narrower prior."""
    choices = sure([2] * 6 + [40] * 6, wide=1.0)

    def linear(numbers: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        slopes = choices.gradients[numbers]
        return choices.margins[numbers] + (slopes * at).sum(1), slopes

    once, found = fit_true(choices, linear), posterior_of(choices, linear)
    assert found.passes == once.passes
    torch.testing.assert_close(found.modes, once.modes)
    assert posterior_of(choices).modes.tolist() == fit_true(choices).modes.tolist()


def verdicts(sure: float, seed: int, count: int = 24) -> list[str]:
    """200 users with `count` choices each, from the prior (`sure` 1) or as the generic user (0)."""
    choices = made_up([count] * 200, seed=seed)
    z = sure * torch.randn(200, 3, generator=torch.Generator().manual_seed(seed + 1)).double()
    logits = choices.logits(z)
    chosen = torch.rand(len(logits), generator=torch.Generator().manual_seed(seed + 2)) < logits.sigmoid()
    sign = torch.where(chosen, 1.0, -1.0).double()
    choices = choices._replace(margins=choices.margins * sign, gradients=choices.gradients * sign.unsqueeze(1))
    return [verdict(gain) for gain in gains(choices, fit_true(choices)).tolist()]


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
