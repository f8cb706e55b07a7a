"""Which question tells most of a user: the information that the answer to each pair of a pool is expected to bring.

A question shows two responses, and the user says which is better. Around the user's start the margin of the first over
the second is linear in z, so under a Gaussian posterior of z it is a Gaussian number, and the answer depends on z by
this number alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from prlhf.adapt.learn import Posterior, posterior_of
from prlhf.model.user_fits import Choices

REACH, NODES = 8.0, 129  # of the quadrature, in standard deviations: right to 3e-4 nats up to one of 20 in log-odds


def information(means: Tensor, variances: Tensor) -> Tensor:
    """The mutual information of k answers and their log-odds, which are N(mean, variance): [k], in nats.

    It is the entropy of the answer less the entropy that stays if the log-odds are known (BALD; Houlsby et al. 2011),
    0 where nothing is uncertain and at most log 2. Both expectations are by the trapezoidal rule,
    which has smaller errors than Gauss-Hermite's where the log-odds are spread over a steep sigmoid.
    """
    points, weights = _nodes()
    logits = means.double().unsqueeze(1) + variances.double().clamp(min=0).sqrt().unsqueeze(1) * points
    first, second = torch.sigmoid(logits), torch.sigmoid(-logits)
    stays = (first * F.softplus(-logits) + second * F.softplus(logits)) @ weights
    found: Tensor = torch.special.entr(first @ weights) + torch.special.entr(second @ weights) - stays
    return found.clamp(min=0)


@cache
def _nodes() -> tuple[Tensor, Tensor]:
    points = torch.linspace(-REACH, REACH, NODES).double()
    return points, torch.softmax(-points.square() / 2, 0)


def expected_information(margins: Tensor, slopes: Tensor, known: Posterior) -> Tensor:
    """How much the answer to each of k questions is expected to tell of one user: [k], in nats.

    `margins` [k] and `slopes` [k, c] are those of the first responses over the second at the user's start; `known` is
    the posterior of this user alone.
    """
    variances = torch.einsum("kc,cd,kd->k", slopes, known.covariances[0], slopes)
    return information(margins + slopes @ known.modes[0], variances)


def posterior_from(margins: Tensor, slopes: Tensor, answers: Sequence[tuple[int, int]]) -> Posterior:
    """The posterior of one user by answers: a question's number, and 1 if the first response was better, -1 if not.

    Margins stay linear, so this takes no pass of the model. A tie is an answer each way.
    """
    numbers = torch.tensor([number for number, _ in answers], dtype=torch.long)
    signs = torch.tensor([sign for _, sign in answers], dtype=torch.float64)
    own = torch.zeros_like(numbers)
    return posterior_of(Choices(own, slopes[numbers] * signs.unsqueeze(1), margins[numbers] * signs, 1))


def best_question(margins: Tensor, slopes: Tensor, known: Posterior, left: Sequence[int]) -> tuple[int, float] | None:
    """Of the questions with numbers `left`, the one that is expected to tell most, and how much, in nats."""
    if not left:
        return None
    numbers = torch.tensor(left)
    told = expected_information(margins[numbers], slopes[numbers], known)
    at = int(told.argmax())
    return left[at], told[at].item()
