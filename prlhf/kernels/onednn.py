"""Linear layers through oneDNN on CPUs.

PyTorch multiplies fp32 matrices with MKL, which on AMD's AVX-512 chips reaches less than half of the speed of oneDNN,
which PyTorch ships too; on Intel's MKL is at least as fast (docs/PERFORMANCE.md). So layers change on AMD's chips only.
The precision is the same; sums are taken in another order.

The operator is private to PyTorch, so `operator` is the only place that names it, and its results are compared with
PyTorch's own before they are used: once for all layouts (`usable`), and once for each shape of weight (`agrees`). Where
it is absent, raises or differs, layers are plain `nn.Linear` ones. It is not used at all on Arm, where PyTorch
multiplies through the Arm Compute Library and this operator through oneDNN's reference code.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from prlhf.kernels.twins import replace_layers, twin

FEW = 8  # rows: below, MKL is up to five times as fast, because oneDNN lays out the whole weight again for each product
TOLERANCE = 1e-4  # of the largest number of a result: fp32 sums in another order differ by far less
ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_agrees: dict[tuple[int, int, bool], bool] = {}  # (outputs, inputs, whether there is a bias) -> what was found


def use_onednn(model: nn.Module) -> None:
    """Replace the fp32 linear layers of `model`, an adapter's included, by ones that multiply through oneDNN.

    The new layers share the parameters of the old ones. Nothing happens where the operator is not usable
    or not faster.
    """
    if faster() and usable():
        replace_layers(model, _instead)


def _instead(layer: nn.Module) -> OneDnnLinear | None:
    return twin(layer, OneDnnLinear) if type(layer) is nn.Linear and layer.weight.dtype == torch.float32 else None


class OneDnnLinear(nn.Linear):
    """A linear layer whose products in fp32 are computed by oneDNN."""

    agrees: bool | None = None  # what `agrees` found for its weight; None: not known before the first call

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.agrees is None:
            self.agrees = agrees(self.weight, self.bias)
        if not self.agrees or input.numel() < FEW * self.in_features or input.dtype != torch.float32:
            return super().forward(input)
        return Multiply.apply(input, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def times_weight(grad: Tensor, layer: nn.Module) -> Tensor:
    """Multiply `grad` [S, n] by the weight [n, k] of a linear `layer`, by the kernel that the layer itself uses."""
    weight = layer.get_parameter("weight")
    if isinstance(layer, OneDnnLinear) and agrees(weight, layer.bias):
        return times(grad, weight.t())
    return grad @ weight


# ---- the operator, and whether it is faster and can be trusted ----


@cache
def faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether oneDNN multiplies fp32 faster than PyTorch does: on AMD's chips.

    It depends on the maker alone, not on a timing, so that a run repeats to the last bit on the same machine.
    """
    known = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in known


@cache
def operator() -> Callable[..., Tensor] | None:
    """PyTorch's private oneDNN operator for linear layers; None off x86, or where this build has none of that name."""
    if not ON_X86:
        return None
    try:
        found: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError):
        return None
    return found if torch.backends.mkldnn.is_available() else None


@cache
def usable() -> bool:
    """Whether the operator is there and multiplies every layout that is used here as PyTorch does."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 8), (6, 8), (6,), (8, 6), (6, 10))
    x, weight, bias, wide, long = (torch.randn(shape, generator=draw) for shape in shapes)
    flat = x.view(-1, 8)
    return same(
        (lambda: times(x, weight, bias), F.linear(x, weight, bias)),
        (lambda: times(flat, wide.t()), flat @ wide),
        (lambda: times(flat.t(), long), flat.t() @ long.t()),
        (lambda: outer(flat, flat[:, :3]), flat.t() @ flat[:, :3]),
        (lambda: outer(flat[:, :3], flat), flat[:, :3].t() @ flat),
    )


@torch.no_grad()
def agrees(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the operator multiplies by a `weight` [n, k] of this shape as PyTorch does, in both directions.

    Computed for a few rows when a shape is first met.
    """
    key = (*weight.shape, bias is None)
    if key not in _agrees:
        draw = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(3, width, generator=draw) for width in (weight.shape[1], weight.shape[0]))
        _agrees[key] = same(
            (lambda: times(x, weight, bias), F.linear(x, weight, bias)),
            (lambda: times(grad, weight.t()), grad @ weight),
        )
    return _agrees[key]


def same(*pairs: tuple[Callable[[], Tensor], Tensor]) -> bool:
    """Whether what each function returns, without raising, is the tensor beside it, except for rounding."""
    if operator() is None:
        return False
    try:
        return all(
            found.shape == expected.shape
            and torch.allclose(found, expected, rtol=0, atol=TOLERANCE * _largest(expected), equal_nan=True)
            for found, expected in ((compute(), expected) for compute, expected in pairs)
        )
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # another signature, or unsupported here
        return False


def _largest(x: Tensor) -> float:
    return float(x.nan_to_num().abs().max())


# ---- products ----


def times(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Left [..., k] @ right [n, k]^T + bias [n]. Only where the operator is `usable`."""
    multiply = operator()
    assert multiply is not None
    return multiply(dense(left), dense(right), bias, "none", [], "")


def dense(x: Tensor) -> Tensor:
    """`x`, copied if it is a view with gaps: oneDNN is a thousand times slower on those."""
    return x if x.is_contiguous() or (x.ndim == 2 and x.t().is_contiguous()) else x.contiguous()


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Left [t, m]^T @ right [t, n] -> [m, n]; oneDNN is much faster with the shorter side first."""
    if left.shape[1] > right.shape[1]:
        return times(right.t(), left.t()).t().contiguous()
    return times(left.t(), right.t())


class Multiply(torch.autograd.Function):
    """x W^T + b, and the gradients of those that need one."""

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
