"""Losses as pure functions of tensors: DPO and its family, Bradley-Terry, and the mix of an objective's terms.

Log-probs are sums over the response's tokens, in nats. D is the margin of section 4.4 (`implicit_margin`). Every loss
of the DPO family, registered by `loss`, takes the place of -log sigmoid(beta D) in the personalized objective. It is a
function (chosen [B], rejected [B], beta, label_smoothing) -> [B]. `chosen` and `rejected` are
log-ratios log pi(y|x, u) - log pi_ref(y|x) in nats: summed over the response's tokens, or averaged for a loss that is
`per_token`. beta times a log-ratio is the response's implicit reward. Only losses that are `smoothed` read
`label_smoothing`, the assumed share of flipped preferences.

Left out are losses that need more than one comparison: aot (sorts log-ratios across the batch, so it would compare
one user's response with another user's) and bco_pair (published, in 2404.04656, with a running mean of rewards).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prlhf.extensions import LOSSES

LossFunction = Callable[[Tensor, Tensor, float, float], Tensor]
DISCOPOP_TAU = 0.05  # the temperature of the discovered loss, as published


def implicit_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """D(x, y1, y2; u) of section 4.4, [B]: the policy's log-ratio to the reference, chosen less rejected."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta D), [B] (Eq. 5)."""
    return -F.logsigmoid(beta * margin)


def bradley_terry(margin: Tensor) -> Tensor:
    """-log sigmoid(r(x, y1) - r(x, y2)), [B] (Eq. 2), of margins between rewards in log-odds."""
    return -F.logsigmoid(margin)


def nll_per_token(chosen: Tensor, lengths: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen response per token, [B]; it keeps the model's text fluent."""
    return -chosen / lengths


def mix(terms: Sequence[tuple[float, Tensor]], count: float) -> Tensor:
    """The weighted sum of an objective's terms, divided by `count`, a scalar (section 4.4).

    The terms of P-DPO are (alpha, losses as the user) and (1 - alpha, losses as the generic user), with losses [n].
    These may be the losses of some of `count` comparisons: the parts of a batch add up to the batch's mean.
    """
    return torch.stack([weight * losses.sum() for weight, losses in terms]).sum() / count


def preference_loss(name: str, ratios: Tensor, lengths: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """The loss `name` of B comparisons, [B].

    `ratios` [2, B]: summed log-ratios, chosen first; `lengths` [2, B]: the responses' tokens, which only the losses
    that are `per_token` take into account.
    """
    found: Loss = LOSSES[name]
    chosen, rejected = ratios / lengths if found.per_token else ratios
    return found(chosen, rejected, beta, label_smoothing)


# ---- the DPO family ----


@dataclass(frozen=True)
class Loss:
    """A loss of the DPO family, and what the rest of prlhf has to know of it."""

    function: LossFunction
    per_token: bool = False  # its log-ratios are averaged over the response's tokens
    smoothed: bool = False  # it reads label_smoothing
    smoothing_required: bool = False  # it is infinite for label_smoothing = 0

    def __call__(self, chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
        """The loss [B] of log-ratios [B], in nats."""
        return self.function(chosen, rejected, beta, label_smoothing)


def loss(
    name: str, *, per_token: bool = False, smoothed: bool = False, smoothing_required: bool = False
) -> Callable[[LossFunction], Loss]:
    """Register the decorated function as the loss `name`.

    Args:
        name: the name to type.
        per_token: whether it takes log-ratios averaged over the response's tokens, in place of sums.
        smoothed: whether it reads label_smoothing.
        smoothing_required: whether it is infinite for label_smoothing = 0.
    """

    def register(function: LossFunction) -> Loss:
        made = Loss(function, per_token, smoothed, smoothing_required)
        LOSSES.register(name, made, function.__module__)
        return made

    return register


@loss("sigmoid", smoothed=True)
def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss, -log s(beta D) (2305.18290, Eq. 7), or conservative DPO's.

    With smoothing e: -(1-e) log s(beta D) - e log s(-beta D), from Mitchell's note "A note on DPO with noisy
    preferences" (2023).
    """
    margin = chosen - rejected
    return (1 - label_smoothing) * dpo(margin, beta) + label_smoothing * dpo(-margin, beta)


@loss("sigmoid_norm", smoothed=True, per_token=True)
def sigmoid_norm(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO's loss with D per token: Tulu 3's length-normalized DPO (2411.15124)."""
    return sigmoid(chosen, rejected, beta, label_smoothing)


@loss("robust", smoothed=True)
def robust(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """((1-e) DPO(D) - e DPO(-D)) / (1 - 2e), for a share e < 1/2 of flipped preferences (2403.00409).

    In expectation it is DPO's loss without the noise. Unbounded below for e > 0.
    """
    margin = chosen - rejected
    clean, flipped = dpo(margin, beta), dpo(-margin, beta)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


@loss("exo_pair", smoothed=True, smoothing_required=True)
def exo_pair(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """KL(p || (1-e, e)), the policy's choice between the two against the labels' (EXO, 2402.00856, Eq. 16).

    p = (s(beta D), s(-beta D)). Infinite for e = 0; 0 where s(beta D) = 1 - e.
    """
    z = beta * (chosen - rejected)
    right = torch.sigmoid(z) * (F.logsigmoid(z) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-z) * (F.logsigmoid(-z) - math.log(label_smoothing))
    return right + wrong


@loss("hinge")
def hinge(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """max(0, 1 - beta D): SLiC's hinge (2305.10425) on log-ratios to the reference (RSO, 2309.06657).

    Zero, and without gradient, from D = 1/beta on.
    """
    return torch.relu(1 - beta * (chosen - rejected))


@loss("ipo", per_token=True)
def ipo(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """(D - 1/(2 beta))^2 with D per token (IPO, 2310.12036, Eq. 17, where beta is called tau).

    Its log-ratios are averaged over tokens, or the target 1/(2 beta) would mean less for a longer text; so does TRL.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


@loss("sppo_hard")
def sppo_hard(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """(c - 1/(2 beta))^2 + (r + 1/(2 beta))^2 for the log-ratios c, r (SPPO, 2405.00675, Eq. 4.7).

    The case in which the chosen response wins with probability 1.
    """
    return (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2


@loss("nca_pair")
def nca_pair(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """-log s(c) - 1/2 log s(-c) - 1/2 log s(-r) for the rewards c, r (NCA, 2402.05369).

    It keeps the chosen reward from falling with the rejected one.
    """
    c, r = beta * chosen, beta * rejected
    return -F.logsigmoid(c) - 0.5 * F.logsigmoid(-c) - 0.5 * F.logsigmoid(-r)


@loss("apo_zero")
def apo_zero(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """1 - s(c) + s(r) for the rewards c, r: chosen up, rejected down (APO, 2408.06266, Eq. 7).

    For chosen responses that are better than what the model writes.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@loss("apo_down")
def apo_down(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """s(c) + 1 - s(c - r) for the rewards c, r: both down, rejected further (APO, 2408.06266, Eq. 8).

    For chosen responses that are worse than what the model writes.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


@loss("discopop")
def discopop(chosen: Tensor, rejected: Tensor, beta: float, _: float = 0.0) -> Tensor:
    """(1 - w) (-log s(z)) + w exp(-z) with z = beta D, w = s(z / tau), tau = 0.05 (DiscoPOP, 2406.08414, Eq. 5).

    It rises from a dip at z = -0.12 to a hump at z = 0.07; training starts in between, at z = 0. The weight is taken
    inside the exponential, which by itself overflows where z is very negative.
    """
    z = beta * (chosen - rejected)
    logistic = -F.logsigmoid(z) * torch.sigmoid(-z / DISCOPOP_TAU)
    return logistic + torch.exp(F.logsigmoid(z / DISCOPOP_TAU) - z)
