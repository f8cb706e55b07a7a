"""Attention over packs on CPUs, as a function of tensors; models that read packs are tested in tests/model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prlhf.kernels.segments import Segment
from prlhf.kernels.tree_attention import LONG, Layout, attend, over_segments

Rows = tuple[Tensor, Tensor, Tensor]


def layout_of(length: int) -> Layout:
    segments = (Segment(0, 5, (), 0), Segment(5, 5 + length, (0,), 5), Segment(5 + length, 11 + length, (0,), 5))
    return Layout(segments, torch.arange(11 + length), flex=False)


def rows_of(layout: Layout, width: int = 8) -> Rows:
    torch.manual_seed(0)
    columns = layout.segments[-1].end
    query = torch.randn(1, 4, columns, width, dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, columns, width, dtype=torch.bfloat16) for _ in range(2))
    return query, key, value


def found(read: Callable[..., Tensor], rows: Rows) -> list[Tensor]:
    """The result and the gradients of what was read, in fp32."""
    rows = tuple(x.clone().requires_grad_() for x in rows)  # type: ignore[assignment]
    out = read(*rows)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float32).view_as(out)
    return [x.float().detach() for x in (out, *torch.autograd.grad((out.float() * weights).sum(), rows))]


def test_beside_a_base_in_bf16_short_readings_are_computed_in_fp32() -> None:
    """The result is that of fp32, rounded; PyTorch's own in bf16 differs, and is slower."""
    layout = layout_of(12)
    rows = rows_of(layout)
    out, exact = (
        attend(nn.Identity(), *some, None, prefix_tree=layout)[0] for some in (rows, [x.float() for x in rows])
    )
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())


@pytest.mark.parametrize("width", [8, 64])
def test_beside_a_base_in_bf16_long_readings_err_about_as_much_as_pytorch(width: int) -> None:
    layout = layout_of(LONG)
    rows = rows_of(layout, width)

    def ours(*rows: Tensor) -> Tensor:
        return attend(nn.Identity(), *rows, None, prefix_tree=layout)[0].transpose(1, 2)

    def pytorch(*rows: Tensor) -> Tensor:
        return over_segments(*rows, layout, None, None)

    exact = found(ours, tuple(x.float() for x in rows))  # type: ignore[arg-type]
    for truth, own, other in zip(exact, found(ours, rows), found(pytorch, rows), strict=True):
        assert (own - truth).abs().mean() < 1.2 * (other - truth).abs().mean()
        assert (own - truth).abs().max() < 0.02 * truth.abs().max()
