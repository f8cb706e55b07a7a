"""Learn users from their choices, with the language model as it is: the posterior over what is free in a user's row.

User u has the row start_u + L z_u with z_u ~ N(0, I) (model/user_prior.py), and prefers the chosen response of a choice
with probability sigmoid(margin(z_u)). Around a point e the margin is linear, margin(e) + slope(e) (z - e), and the mode
is that of a logistic regression (model/user_fits.py). The margin is then read at the mode. Where it disagrees with what
was predicted, it is linearized there, and fitted again; a step that does not help is halved (Gauss-Newton). What is
kept is the point with the highest posterior density, by true margins; and of two scales of the prior the one that
explains the choices, if it is much better at that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prlhf.model.user_fits import Choices, fit_users

ROUNDS = 4  # of reading margins again, at most
NARROWER = 0.5  # of the prior's scale
MUCH = math.log(20)  # nats of evidence that decide: for the narrower prior, and for a verdict (apart.py)
NEAR = 1.0  # nats by which linear margins may be wrong about the evidence under it
AGREE = 0.01  # of a margin, or nats if it is below 1: a prediction that is closer is not read again
STILL = 1e-3  # of the prior's standard deviations: a step that is shorter changes nothing
OUTER = 2**22  # numbers of outer products in memory at a time

Read = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # numbers of choices [k], z [k, c] -> margins, slopes


@dataclass(frozen=True)
class Posterior:
    """What is known of m users: modes of z [m, c], covariances [m, c, c] (Laplace), and log evidence [m] in nats.

    `passes`: choices that were read, each by a forward and a backward pass. `margins` [n]: of the choices, at the mode.
    """

    modes: Tensor
    covariances: Tensor
    evidence: Tensor
    margins: Tensor
    passes: int


def posterior_of(choices: Choices, read: Read | None = None) -> Posterior:
    """The posterior of each user by `choices`, as `fit_true` has it, under N(0, I) or under a prior of half its scale.

    The scale is right for few choices. With many of them it lets users go so far out that margins bend, and the
    evidence falls. Whoever has 20 times the evidence under the narrower prior is learned under that one.
    """
    wide = fit_true(choices, read)
    if read is None:
        return wide
    narrower = choices.scaled(NARROWER)
    promising = fit_users(narrower).evidence + NEAR > wide.evidence + MUCH
    if not promising.any():
        return wide
    own = promising[choices.users]
    numbers = own.nonzero().squeeze(1)

    def read_narrower(some: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        margins, slopes = read(numbers[some], NARROWER * at)
        return margins, NARROWER * slopes

    found = fit_true(narrower.those(own), read_narrower)
    taken = promising & (found.evidence > wide.evidence + MUCH)
    margins = wide.margins.clone()
    margins[own] = torch.where(taken[choices.users[own]], found.margins, margins[own])
    return Posterior(
        torch.where(taken.unsqueeze(1), NARROWER * found.modes, wide.modes),
        torch.where(taken.view(-1, 1, 1), NARROWER**2 * found.covariances, wide.covariances),
        torch.where(taken, found.evidence, wide.evidence),
        margins,
        wide.passes + found.passes,
    )


def fit_true(choices: Choices, read: Read | None = None) -> Posterior:
    """The posterior of each user by `choices` under N(0, I), with margins and slopes at z = 0.

    With `read` they are read again at other points; without it they are linear throughout, and nothing is read.
    """
    if read is None:
        modes = fit_users(choices).modes
        return _posterior(choices, choices.gradients.double(), choices.logits(modes), modes, 0)
    at = torch.zeros(choices.total, choices.gradients.shape[1]).double()
    margins, slopes = choices.margins.double(), choices.gradients.double()
    best, step = _log_joint(choices, margins, at), torch.ones(choices.total).double()
    unsettled, passes = torch.bincount(choices.users, minlength=choices.total) > 0, 0
    for _ in range(ROUNDS):
        if not unsettled.any():
            break
        linear = choices._replace(gradients=slopes, margins=margins - (slopes * at[choices.users]).sum(1))
        tried = torch.where(unsettled.unsqueeze(1), at + step.unsqueeze(1) * (fit_users(linear).modes - at), at)
        numbers = unsettled[choices.users].nonzero().squeeze(1)
        found, found_slopes = margins.clone(), slopes.clone()
        found[numbers], found_slopes[numbers] = read(numbers, tried[choices.users[numbers]])
        passes += len(numbers)
        value = _log_joint(choices, found, tried)
        better = unsettled & (value > best)
        off = (found - linear.logits(tried)).abs() / found.abs().clamp(min=1)
        furthest = torch.zeros_like(best).scatter_reduce(0, choices.users, off, "amax")
        moved = (tried - at).abs().amax(1) > STILL
        own = better[choices.users]
        margins, slopes = torch.where(own, found, margins), torch.where(own.unsqueeze(1), found_slopes, slopes)
        at, best = torch.where(better.unsqueeze(1), tried, at), torch.where(better, value, best)
        unsettled = unsettled & moved & ~(better & (furthest < AGREE) & (step == 1))
        step = torch.where(better, 1.0, step / 2)
    return _posterior(choices, slopes, margins, at, passes)


def _log_joint(choices: Choices, margins: Tensor, at: Tensor) -> Tensor:
    """Log p(choices | z) + log N(z; 0, I) [m], without the constant that the evidence does not have."""
    return log_likelihood(choices, margins) - at.square().sum(1) / 2


def log_likelihood(choices: Choices, margins: Tensor) -> Tensor:
    """The log-likelihood [m] of each user's choices, which have `margins` [n]."""
    return torch.zeros(choices.total).double().index_add_(0, choices.users, F.logsigmoid(margins.double()))


def _posterior(choices: Choices, slopes: Tensor, margins: Tensor, modes: Tensor, passes: int) -> Posterior:
    width = modes.shape[1]
    precisions = torch.eye(width).double().repeat(choices.total, 1, 1)
    chance = torch.sigmoid(margins)
    each = max(1, OUTER // max(width * width, 1))
    for some in torch.arange(len(margins)).split(each):
        weighted = slopes[some] * (chance[some] * (1 - chance[some])).unsqueeze(1)
        precisions.index_add_(0, choices.users[some], weighted.unsqueeze(2) * slopes[some].unsqueeze(1))
    root = torch.linalg.cholesky(precisions)
    evidence = _log_joint(choices, margins, modes) - root.diagonal(dim1=1, dim2=2).log().sum(1)
    return Posterior(modes, torch.cholesky_inverse(root), evidence, margins, passes)
