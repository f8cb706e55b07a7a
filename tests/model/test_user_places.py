"""Where users start: users who choose alike start alike, in any place, and who has not chosen is the generic user."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.model.user_models import UserModel, build_user_model
from prlhf.model.user_places import clusters_of, directions_for

VOCABULARY = 0.3 * torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
PLACES: list[dict[str, Any]] = [
    {"user_model": "individual"},
    {"user_model": "individual", "user_in": "adapter"},
    {"user_model": "individual", "user_in": "adapter", "gates": "block"},
    {"user_model": "cluster", "k": 3},
    {"user_model": "cluster", "k": 3, "cluster_weights": "linear"},
    {"user_model": "cluster", "k": 3, "user_in": "adapter"},
    {"user_model": "cluster", "k": 3, "user_in": "adapter", "cluster_weights": "linear"},
]


def kinds(each: int = 4) -> Tensor:
    """Codes of three kinds of users, `each` of a kind one after another, and of a user without choices."""
    centers = torch.tensor([[4.0, 0.0], [-2.0, 3.0], [-2.0, -3.0]])
    noise = 0.05 * torch.randn(3 * each, 2, generator=torch.Generator().manual_seed(1))
    return torch.cat([centers.repeat_interleave(each, 0) + noise, torch.zeros(1, 2)])


def started(options: dict[str, Any], codes: Tensor, seed: int = 0) -> UserModel:
    """The user model, or its gates if users act in the adapter, started at `codes`."""
    config = TrainConfig(user_init="choices", seed=seed, lora_r=4, **options)
    model = build_user_model(config, len(codes), VOCABULARY, blocks=2)
    place = model.gates or model
    place.start_at(codes, seed)
    return place


def vectors(model: UserModel, users: int) -> Tensor:
    """Those of the generic user and of `users` others, [1 + users, numbers]."""
    return model(torch.arange(users + 1)).detach().flatten(1)


def test_directions_keep_distances_and_have_the_scale_of_the_place() -> None:
    codes = torch.cat([torch.randn(300, 3) * torch.tensor([3.0, 1.0, 0.2]), torch.zeros(700, 3)])
    rows = codes @ directions_for(codes, 20, 0.5, seed=0)
    assert rows[:300].square().mean().sqrt().item() == pytest.approx(0.5)
    ratios = torch.cdist(rows[:9], rows[:9]) / torch.cdist(codes[:9], codes[:9]).fill_diagonal_(torch.inf)
    expected = ratios[0, 1].expand(9, 9).clone().fill_diagonal_(0)
    torch.testing.assert_close(ratios, expected, rtol=1e-4, atol=1e-6)
    one, same, other = (directions_for(codes, 20, 0.5, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_place_may_be_smaller_than_the_codes() -> None:
    codes = torch.randn(50, 5)
    rows = codes @ directions_for(codes, 2, 2.0, seed=0)
    assert rows.square().mean().sqrt().item() == pytest.approx(2.0)


@pytest.mark.parametrize("options", PLACES)
def test_users_who_choose_alike_start_alike(options: dict[str, Any]) -> None:
    """As far from those of other kinds as users of this place are from each other, whatever starts them otherwise."""
    codes = kinds()
    generic, own, nobody = vectors(started(options, codes), 13).split([1, 12, 1])
    distances = torch.cdist(own, own).view(3, 4, 3, 4).amax((1, 3))
    nearest = torch.cdist(own, own).view(3, 4, 3, 4).amin((1, 3)).fill_diagonal_(torch.inf)
    assert distances.diagonal().max() < 0.1 * nearest.min()
    scale = 2.0 if "user_in" in options else VOCABULARY.std().item()
    assert (own - generic).square().mean().sqrt().item() == pytest.approx(scale, rel=1e-3)
    torch.testing.assert_close(nobody, generic, rtol=0, atol=1e-5)
    if "user_in" in options:
        torch.testing.assert_close(generic, torch.zeros(1, generic.shape[1]))
    else:
        assert torch.cdist(generic.view(-1, 16), VOCABULARY).amin(1).max() < 0.01  # rows of the vocabulary, as always


@pytest.mark.parametrize("options", PLACES)
def test_the_start_depends_on_the_seed_alone(options: dict[str, Any]) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (vectors(started(options, kinds(), seed), 13) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_centers_are_the_kinds_and_shares_are_soft() -> None:
    """Those who have not chosen, most users here, are not a kind of their own."""
    centers, shares = clusters_of(torch.cat([kinds(), torch.zeros(50, 2)]), 3, seed=0)
    assert shares.shape == (64, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    assert shares.min() >= 0.1 / 3 - 1e-6  # each can still be moved to
    assert shares[1:13].amax(1).min() > 0.9
    assert len({tuple(kind.unique().tolist()) for kind in shares[1:13].argmax(1).split(4)}) == 3
    assert torch.equal(shares[13:], shares[:1].expand(51, 3))
    torch.testing.assert_close(shares[0] @ centers, torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [12, 30])
def test_as_many_clusters_as_users_or_more(count: int) -> None:
    centers, shares = clusters_of(kinds(), count, seed=0)
    assert centers.shape == (count, 2)
    assert shares.isfinite().all()
    assert centers.isfinite().all()


@pytest.mark.parametrize("options", [PLACES[1], PLACES[5]])
def test_a_hundred_thousand_users(options: dict[str, Any]) -> None:
    codes = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    model = started(options, codes)
    assert time.process_time() - began < 10
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 300  # MiB
    assert vectors(model, 100_000)[1:].any(1).all()
