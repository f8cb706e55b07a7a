"""Policy optimization as pure functions of tensors: advantages of a group, and the losses of GRPO and of RLOO.

A group is G responses to one prompt for one user. Log-probs are of tokens, in nats, [..., G, W], 0 where `mask` is 0:
`new` of the policy in training, `old` of the policy that wrote the responses, `reference` of the base. Tests compare
all of this with TRL's trainers.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-4  # added to a standard deviation before it divides


# ---- advantages ----


def above_mean(rewards: Tensor) -> Tensor:
    """r_i less the mean of its group, [G] (GRPO, 2402.03300, before it is divided by a standard deviation)."""
    return rewards - rewards.mean()


def above_others(rewards: Tensor) -> Tensor:
    """r_i less the mean of the others of its group, [G] (RLOO, 2402.14740, Eq. 4)."""
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def scaled(advantages: Tensor, deviation: Tensor) -> Tensor:
    """`advantages` in units of a standard `deviation` (a scalar)."""
    return advantages / (deviation + TINY)


def penalized(rewards: Tensor, old: Tensor, reference: Tensor, beta: float) -> Tensor:
    """r_i less beta times the log-ratio of policy to reference of the whole response, [G]: Eq. 3's integrand."""
    return rewards - beta * (old - reference).sum(-1)


# ---- losses ----


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """An estimate of the KL divergence from the reference at each token, never negative (Schulman's k3)."""
    ratio = reference - new
    return ratio.exp() - ratio - 1


def clipped(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A): PPO's surrogate (1707.06347, Eq. 7), to be minimized."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def outside(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Where `clipped` has no gradient: 1 or 0."""
    return (((ratio < 1 - clip) & (advantages < 0)) | ((ratio > 1 + clip) & (advantages > 0))).float()


def grpo(
    new: Tensor, old: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, clip: float, beta: float
) -> Tensor:
    """GRPO's loss of each response, [..., G]: the mean over its tokens of the clipped surrogate + beta ratio k3.

    `advantages` [..., G] are those of whole responses. (2402.03300, Eq. 3; the ratio before k3, by which the
    gradient is that of the policy in training and not of the one that wrote, is DeepSeek-V3.2's, 2512.02556, and TRL's
    default.)
    """
    ratio = (new - old).exp()
    surrogate = clipped(ratio, advantages.unsqueeze(-1), clip)
    return over_tokens(surrogate + beta * ratio * k3(new, reference), mask)


def rloo(new: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """RLOO's loss of each response, [..., G]: the clipped surrogate of the whole response's ratio.

    The KL divergence is not in it but in the rewards (`penalized`).
    """
    return clipped(((new - old) * mask).sum(-1).exp(), advantages, clip)


def over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` [..., W] where `mask` is 1, [...]."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
