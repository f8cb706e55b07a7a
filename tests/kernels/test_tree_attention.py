"""Attention over packs on CPUs, as a function of tensors; models that read packs are tested in tests/model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from prlhf.kernels import tree_attention
from prlhf.kernels.onednn import ON_X86, times
from prlhf.kernels.segments import Segment
from prlhf.kernels.tree_attention import LONG, Layout, attend, over_segments, query_blocks

Rows = tuple[Tensor, Tensor, Tensor]


class Operators(TorchDispatchMode):
    """The names of what PyTorch computes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


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


@pytest.mark.skipif(not ON_X86, reason="oneDNN's operator is for x86")
@pytest.mark.parametrize("window", [None, 40])
def test_long_readings_in_fp32_are_those_of_pytorch(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(LONG)
    rows = tuple(x.float() for x in rows_of(layout))

    def ours(*rows: Tensor) -> Tensor:
        options: Any = {"prefix_tree": layout, "sliding_window": window}
        return attend(nn.Identity(), *rows, None, **options)[0].transpose(1, 2)

    read = {}
    for faster in (True, False):
        monkeypatch.setattr(tree_attention, "faster", lambda faster=faster: faster)
        read[faster] = found(ours, rows)  # type: ignore[arg-type]
    for own, other in zip(read[True], read[False], strict=True):
        assert not torch.equal(own, other)
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not ON_X86, reason="oneDNN's operator is for x86")
def test_long_readings_have_their_scores_alone_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their gradient: one product of a block forward and two backward, of seven in all.

    Beside a base in fp32, all seven are oneDNN's where that is faster, and none elsewhere.
    """
    layout, products = layout_of(LONG), 0

    def counted(*factors: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return times(*factors)

    monkeypatch.setattr(tree_attention, "times", counted)
    rows = rows_of(layout)
    exact = tuple(x.float() for x in rows)
    for some, faster, each in ((rows, True, 3), (rows, False, 3), (exact, True, 7), (exact, False, 0)):
        monkeypatch.setattr(tree_attention, "faster", lambda faster=faster: faster)
        products = 0
        found(lambda *rows: attend(nn.Identity(), *rows, None, prefix_tree=layout)[0], some)  # type: ignore[arg-type]
        blocks = len(list(query_blocks(layout.segments))) * rows[1].shape[1]
        assert products == each * blocks


def test_the_gradient_of_short_readings_has_no_slices() -> None:
    """Each slice would have a gradient of all columns."""
    layout = layout_of(12)
    with Operators() as operators:
        found(lambda *rows: over_segments(*rows, layout, None, None), tuple(x.float() for x in rows_of(layout)))  # type: ignore[arg-type]
    assert any("attention" in name for name in operators.names)
    assert not any("slice_backward" in name for name in operators.names)
