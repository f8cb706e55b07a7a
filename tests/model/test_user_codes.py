"""Codes of users from their choices: in a made-up crowd they are the users' tastes, and nothing without tastes."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from prlhf.model.user_codes import Tastes, find_tastes, whitening

FEATURES, TASTES = 12, 3


def crowd(
    users: int, each: int, noise: float = 1.0, common: float = 0.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [n, 12] of comparisons, whose they are [n], and true tastes [users, 3]: the features 0, 1 and 2 matter.

    `noise` 0: choices have nothing to do with tastes. `common`: what everyone thinks of feature 5.
    """
    generator = torch.Generator().manual_seed(seed)
    tastes = torch.randn(users, TASTES, generator=generator)
    owners = torch.arange(users).repeat(each)
    features = torch.randn(len(owners), FEATURES, generator=generator)
    logits = 2 * noise * (features[:, :TASTES] * tastes[owners]).sum(1) + common * features[:, 5]
    chosen = torch.rand(len(owners), generator=generator) < torch.sigmoid(logits)
    return torch.where(chosen.unsqueeze(1), features, -features), owners, tastes


def explained(tastes: Tensor, codes: Tensor) -> Tensor:
    """R^2 [3] of a linear regression of true tastes on codes."""
    left = tastes.double() - codes @ torch.linalg.lstsq(codes, tastes.double()).solution
    return 1 - left.square().sum(0) / tastes.double().square().sum(0)


def test_three_tastes_stand_out_and_codes_are_them() -> None:
    features, owners, tastes = crowd(100, 40)
    found = find_tastes(features, owners, 100, seed=0)
    assert found.loadings.shape == (FEATURES, TASTES)
    codes = found.codes(features, owners, 100)
    assert explained(tastes, codes).min() > 0.75
    assert found.spread.tolist() == sorted(found.spread.tolist(), reverse=True)
    assert found.spread.min() > 1.2
    torch.testing.assert_close(codes.square().mean(0).sqrt(), found.spread, rtol=0.15, atol=0)
    others, whose, _ = crowd(100, 20)  # the same tastes, other comparisons
    own, generic = (found.margins(others, c[whose]) for c in (codes, 0 * codes))
    assert (own > 0).double().mean() > 0.75
    assert (generic > 0).double().mean() < 0.6


def test_margins_are_features_by_weights() -> None:
    """In units of log-odds: a code's k-th number is how much the k-th direction counts."""
    loadings = torch.tensor([[0.0], [3.0], [4.0]]).double()
    tastes = Tastes(torch.tensor([0.5, 0.0, 0.0]).double(), loadings, torch.ones(3), [])
    found = tastes.margins(torch.tensor([[2.0, 1.0, 0.0], [2.0, 3.0, 4.0]]), torch.tensor([[0.0], [2.0]]).double())
    assert found.tolist() == pytest.approx([1.0, 1.0 + 2 * 5])


def test_choices_without_tastes_leave_everyone_generic() -> None:
    for seed in range(3):
        features, owners, _ = crowd(60, 20, noise=0, seed=seed)
        found = find_tastes(features, owners, 60, seed)
        assert found.codes(features, owners, 60).shape == (60, 0)
        assert found.margins(features, torch.zeros(len(features), 0)).shape == (len(features),)


@pytest.mark.parametrize("each", [5, 20])
@pytest.mark.parametrize("sharp", [3.0, torch.inf])
def test_users_who_are_alike_have_no_codes(each: int, sharp: float) -> None:
    """However clearly they choose: what a prior has shrunk for all of them alike is nobody's taste."""
    generator = torch.Generator().manual_seed(each)
    owners = torch.arange(40).repeat(each)
    features = torch.randn(len(owners), FEATURES, generator=generator)
    logits = features @ torch.randn(FEATURES, generator=generator)
    chosen = torch.rand(len(owners), generator=generator) < torch.sigmoid(sharp * logits)
    found = find_tastes(torch.where(chosen.unsqueeze(1), features, -features), owners, 40, seed=0)
    assert found.loadings.shape[1] == 0


@pytest.mark.parametrize("common", [0.0, 2.0])
def test_as_many_codes_as_tastes(common: float) -> None:
    """With few choices too, where one direction alone does not show."""
    features, owners, tastes = crowd(60, 8 if common == 0 else 20, common=common)
    found = find_tastes(features, owners, 60, seed=0)
    assert found.loadings.shape[1] == TASTES
    assert explained(tastes, found.codes(features, owners, 60)).mean() > 0.4


def test_one_user_alone_has_no_code() -> None:
    features, owners, _ = crowd(1, 30)
    assert find_tastes(features, owners, 1, seed=0).loadings.shape[1] == 0


def test_what_all_have_in_common_is_nobodys_code() -> None:
    features, owners, _ = crowd(60, 20, noise=0, common=2.0)
    found = find_tastes(features, owners, 60, seed=0)
    assert found.loadings.shape[1] == 0
    assert found.common[5] == pytest.approx(2.0, abs=0.4)
    assert found.common.abs().argmax() == 5


def test_few_choices_leave_a_user_near_the_generic_one() -> None:
    features, owners, _ = crowd(150, 40)
    found = find_tastes(features, owners, 150, seed=0)
    sizes = [0.0]
    for most in (1, 4, 16, 40):
        few = slice(0, 150 * most)  # everyone's first ones
        codes = found.codes(features[few], owners[few], 151)
        assert codes[150].tolist() == [0.0] * TASTES  # without choices
        sizes.append(codes.norm(dim=1).mean().item())
    assert sizes == sorted(sizes)
    assert sizes[1] < sizes[-1] / 2


def test_a_seed_gives_the_same_codes_and_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prlhf.model.user_codes.USERS", 80)
    features, owners, tastes = crowd(200, 30)
    one, same, other = (find_tastes(features, owners, 200, seed) for seed in (0, 0, 1))
    assert torch.equal(one.codes(features, owners, 200), same.codes(features, owners, 200))
    assert not torch.equal(one.loadings, other.loadings)
    assert explained(tastes, one.codes(features, owners, 200)).min() > 0.7


def test_whitened_features_are_uncorrelated_and_of_one_size() -> None:
    """Whatever the scales, with a feature that never differs and one that repeats another."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(500, 4, generator=generator) @ torch.randn(4, 6, generator=generator)
    raw = torch.cat([made * torch.tensor([1e-4, 1, 1e4, 1, 1, 1]), torch.zeros(500, 1), made[:, :1]], 1)
    weights = whitening(raw, components=5)
    assert weights.shape == (8, 4)
    white = raw.double() @ weights
    torch.testing.assert_close(white.T @ white / 500, torch.eye(4).double(), atol=1e-6, rtol=0)
    assert whitening(raw, components=2).shape == (8, 2)
    assert (weights[6] == 0).all()
    one, other = (x.double() @ whitening(x) for x in (raw, raw * torch.tensor([3.0] + [1.0] * 7)))
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-3, rtol=0)


def test_a_hundred_thousand_users() -> None:
    """What takes longest is found from a sample of them; each of them is fitted."""
    features, owners, tastes = crowd(100_000, 4)
    began = time.process_time()
    found = find_tastes(features, owners, 100_000, seed=0)
    codes = found.codes(features, owners, 100_000)
    assert time.process_time() - began < 90
    assert codes.shape == (100_000, TASTES)
    assert explained(tastes, codes).min() > 0.2
