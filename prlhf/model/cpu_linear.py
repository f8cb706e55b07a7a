"""Linear layers through oneDNN on CPUs.

PyTorch multiplies fp32 matrices with MKL, which on AMD's AVX-512 chips reaches less than half of what oneDNN, shipped
with PyTorch as well, gets out of them (docs/PERFORMANCE.md). Same precision, sums in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


def speed_up(lm: nn.Module) -> None:
    """Let all fp32 linear layers of `lm`, adapters' included, multiply through oneDNN, where this PyTorch has it."""
    if not has_onednn():
        return
    for module in lm.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = OneDnnLinear


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's linear operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDnnLinear(nn.Linear):
    """A linear layer whose products in float32 are computed by oneDNN."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not input.numel() or input.dtype != torch.float32:
            return super().forward(input)
        return Multiply.apply(input, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def times(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Left [..., k] @ right [n, k]^T + bias [n]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(dense(left), dense(right), bias, "none", [], "")
    return found


def dense(x: Tensor) -> Tensor:
    """`x`, copied if it is a view with gaps: oneDNN takes a thousand times as long over those."""
    return x if x.is_contiguous() or (x.ndim == 2 and x.t().is_contiguous()) else x.contiguous()


class Multiply(torch.autograd.Function):
    """x W^T + b, and the gradients of those that want one."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return times(x, weight, bias)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad_x = times(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        flat = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            grad_weight = outer(flat, x.reshape(-1, x.shape[-1]))
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        return grad_x, grad_weight, grad_bias


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Left [t, m]^T @ right [t, n] -> [m, n]; oneDNN is much faster with the shorter side first."""
    if left.shape[1] > right.shape[1]:
        return times(right.t(), left.t()).t().contiguous()
    return times(left.t(), right.t())
