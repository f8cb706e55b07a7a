"""Are a user's choices told apart from the generic user's? By the evidence of both, with few errors.

The gain is the log of a Bayes factor: the evidence of the fit against the likelihood of the generic user, in nats. Of
users who choose as the generic one does, at most 1 in 20 reach a factor of 20 under one prior (Markov's inequality),
so at most 1 in 10 under the better of two (learn.py); of users whom the prior describes at most 1 in 20 fall below
1/20. The generic user may be less sure than he says: he counts as the best of several degrees of sureness, down to
choosing by lot. So a taste that no trained user has, which a fit can only meet by being less sure, does not pass for
one that was learned.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from prlhf.adapt.learn import MUCH, Posterior, log_likelihood
from prlhf.model.user_fits import Choices

SURENESS = (0.0, 0.25, 0.5, 0.75, 1.0)

Verdict = Literal["yes", "no", "unsure"]


def gains(choices: Choices, posterior: Posterior) -> Tensor:
    """By how much the fit explains each user's choices better than the generic user does, in nats [m].

    `choices` has the margins of the generic user.
    """
    generic = torch.stack([log_likelihood(choices, share * choices.margins) for share in SURENESS]).amax(0)
    return posterior.evidence - generic


def verdict(gain: float) -> Verdict:
    """Whether a user can be distinguished from the generic user."""
    if gain >= MUCH:
        return "yes"
    return "no" if gain <= -MUCH else "unsure"


def uncertainty(posterior: Posterior) -> Tensor:
    """What is left to learn of each user [m]: the posterior's standard deviations by the prior's; 1 without choices."""
    mean: Tensor = posterior.covariances.diagonal(dim1=1, dim2=2).mean(1)
    return mean.sqrt()
