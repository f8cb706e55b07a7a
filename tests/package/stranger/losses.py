"""A loss: the square of the hinge, per token, with smoothing."""

from __future__ import annotations

import torch
from torch import Tensor

from prlhf.train.losses import loss


@loss("squared-hinge", smoothed=True, per_token=True)
def squared_hinge(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """(1 - e) max(0, 1 - beta D)^2 + e max(0, 1 + beta D)^2, with D per token."""
    margin = beta * (chosen - rejected)
    right, wrong = torch.relu(1 - margin) ** 2, torch.relu(1 + margin) ** 2
    return (1 - label_smoothing) * right + label_smoothing * wrong
