"""Log-probs of given tokens from hidden states, without [tokens, vocabulary] ever standing whole in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from prlhf.kernels.onednn import times_weight

CHUNK = 2**23  # logits that exist at a time


def token_log_probs(head: nn.Module, hidden: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """Log p [S] in nats (fp32) of `targets` [S], of which `head` makes logits from `hidden` [S, d].

    With a frozen linear head the gradient is taken in the forward pass, where the probabilities are at hand, at no
    more cost than a backward pass would have; other heads compute each chunk anew in the backward pass.
    """
    rows = max(1, chunk // _vocabulary(head))
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_log_probs(head, h, t) for h, t in pieces])
    if isinstance(head, nn.Linear) and not head.weight.requires_grad:
        return torch.cat([FrozenHead.apply(head, h, t) for h, t in pieces])  # type: ignore[no-untyped-call]
    return torch.cat([checkpoint(_log_probs, head, h, t, use_reentrant=False) for h, t in pieces])


def _vocabulary(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _log_probs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden).float()
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)  # type: ignore[no-any-return]


class FrozenHead(torch.autograd.Function):
    """d log p_y / d hidden = W_y - p W, kept [S, d] instead of the logits [S, V]."""

    @staticmethod
    @override
    def forward(ctx: Any, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        weight, logits = head.weight, head(hidden).float()
        chosen: Tensor = logits.gather(1, targets.unsqueeze(1))
        total = logits.logsumexp(1, keepdim=True)
        probabilities = logits.sub_(total).exp_().to(weight.dtype)
        ctx.save_for_backward(weight[targets] - times_weight(probabilities, head))
        found: Tensor = (chosen - total).squeeze(1)
        return found

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return None, (slope * grad.unsqueeze(1)).to(slope.dtype), None
