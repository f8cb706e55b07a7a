"""The objectives as pure functions of tensors. Log-probs are sums over response tokens, in nats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Negative log-likelihood of the chosen response per token, [B]; keeps the text whole (DESIGN.md's warning)."""
    return -chosen / lengths


def mix(terms: Sequence[tuple[float, Tensor]], count: float) -> Tensor:
    """The mean over `count` comparisons of the weighted sum of terms (section 4.4).

    P-DPO's terms are (alpha, the user's) and (1 - alpha, the generic user's), each (weight, losses [n]): of all the
    comparisons, or of some, so that what is computed in parts adds up to the whole.
    """
    return torch.stack([weight * losses.sum() for weight, losses in terms]).sum() / count
