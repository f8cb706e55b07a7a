"""Why personalize (section 3): Lemmas 3.2 and 3.3 on tabular rewards, trained with the package's own objective.

Every pair of responses is rated by all of 20 users, some of whom want the one and the rest the other. The reward has
a parameter of its own for every response and user, so what it predicts at its optimum is the objective's doing alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prlhf.train import losses

USERS = 20
SHARES = torch.arange(10, 20) / USERS  # 0.5 to 0.95
VANILLA = 0.0  # the weight alpha of a model that knows only the generic user


@dataclass(frozen=True)
class Ratings:
    """N ratings: of which pair, by which user (1 to 20), and whether the first response was chosen, each [N]."""

    pairs: Tensor
    users: Tensor
    first: Tensor
    wanted: Tensor  # [20, P]: 1 where the user wants the first response of the pair, 0 where the second


def rate(shares: Tensor, times: int = 1, slips: int = 0) -> Ratings:
    """Every user rates every pair `times` times, `slips` of them against what the user wants.

    `shares` [P]: the share of users that want the first response of each pair.
    """
    wanted = (torch.arange(USERS)[:, None] < (shares * USERS).round()).float()
    users, pairs, tries = torch.meshgrid(
        torch.arange(USERS), torch.arange(len(shares)), torch.arange(times), indexing="ij"
    )
    first = wanted[users, pairs].bool() ^ (tries < slips)
    return Ratings(pairs.flatten(), users.flatten() + 1, first.flatten(), wanted)


def fit(ratings: Ratings, alpha: float) -> Tensor:
    """P(first response preferred) [21, P] for the generic user and the 20, at the optimum of the P-RM objective.

    As in Example 2, a user's reward is the generic one plus an offset.
    """
    generic = torch.zeros(ratings.wanted.shape[1], 2, dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(USERS, *generic.shape, dtype=torch.float64, requires_grad=True)

    def rewards() -> Tensor:
        return torch.cat([generic[None], generic + offsets])

    def margin(users: Tensor) -> Tensor:
        of_pair = rewards()[users, ratings.pairs]
        chosen = (~ratings.first).long()[:, None]
        return (of_pair.gather(1, chosen) - of_pair.gather(1, 1 - chosen)).squeeze(1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        own = losses.bradley_terry(margin(ratings.users))
        as_generic = losses.bradley_terry(margin(torch.zeros_like(ratings.users)))
        value = losses.mix([(alpha, own), (1 - alpha, as_generic)], len(own))
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(
        [generic, offsets], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss)
    assert all(p.grad is not None and p.grad.abs().max() < 1e-6 for p in (generic, offsets))
    return torch.sigmoid(rewards()[..., 0] - rewards()[..., 1]).detach()


def deviations(predicted: Tensor, ratings: Ratings) -> tuple[Tensor, Tensor]:
    """Mean |P - what the user wants| of each pair, [P]: over those who want the first response, over the others."""
    apart, wanted = (predicted - ratings.wanted).abs(), ratings.wanted
    return (apart * wanted).sum(0) / wanted.sum(0), (apart * (1 - wanted)).sum(0) / (1 - wanted).sum(0)


def close(actual: Tensor, expected: Tensor | float, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected).double().expand_as(actual), rtol=0, atol=tolerance)


# ---- without users ----


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, USERS - 1), min_size=1, max_size=8))
def test_a_vanilla_reward_model_predicts_the_share_of_users(counts: list[int]) -> None:
    """Lemma 3.2, with pairs of different shares side by side."""
    shares = torch.tensor(counts) / USERS
    close(fit(rate(shares), VANILLA)[0], shares)


def test_a_vanilla_reward_model_predicts_the_share_of_ratings() -> None:
    """Lemma 3.2 where users slip in 2 of 10 ratings: 0.8 of the share that wants it and 0.2 of the rest."""
    close(fit(rate(SHARES, times=10, slips=2), VANILLA)[0], 0.8 * SHARES + 0.2 * (1 - SHARES))


def test_the_minority_pays_and_more_so_the_smaller_it_is() -> None:
    """Lemma 3.3: the majority's deviation is 1 - share, the minority's is the share."""
    ratings = rate(SHARES)
    majority, minority = deviations(fit(ratings, VANILLA)[0], ratings)
    assert (minority >= majority - 1e-6).all()
    assert (minority.diff() > 0.04).all()  # as the shares do, by 0.05
    close(minority, SHARES)
    close(majority, 1 - SHARES)


# ---- with users ----


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_with_users_nobody_pays(alpha: float) -> None:
    """A user who wants a response in 9 of 10 ratings is predicted to, whatever the others want."""
    ratings = rate(SHARES, times=10, slips=1)
    majority, minority = deviations(fit(ratings, alpha)[1:], ratings)
    close(majority, 0.1)
    close(minority, 0.1)
    of_vanilla = deviations(fit(ratings, VANILLA)[0], ratings)[1]
    assert (of_vanilla > 0.49).all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, USERS - 1), min_size=1, max_size=5), st.sampled_from([0.3, 0.5, 0.7]))
def test_the_generic_user_is_the_vanilla_model(counts: list[int], alpha: float) -> None:
    """The term of weight 1 - alpha is what a model without users is trained by (section 4.4)."""
    ratings = rate(torch.tensor(counts) / USERS, times=10, slips=1)
    close(fit(ratings, alpha)[0], fit(ratings, VANILLA)[0])
