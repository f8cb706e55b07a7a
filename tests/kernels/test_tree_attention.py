"""Attention over packs on CPUs, as a function of tensors; models that read packs are tested in tests/model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prlhf.kernels.segments import Segment
from prlhf.kernels.tree_attention import LONG, Layout, attend


@pytest.mark.parametrize("length", [12, LONG])
def test_beside_a_base_in_bf16_it_is_computed_in_fp32(length: int) -> None:
    """Its result is that of fp32, rounded; PyTorch's own in bf16 differs, and is slower."""
    torch.manual_seed(0)
    segments = (Segment(0, 5, (), 0), Segment(5, 5 + length, (0,), 5), Segment(5 + length, 11 + length, (0,), 5))
    layout = Layout(segments, torch.arange(11 + length), flex=False)
    query = torch.randn(1, 4, 11 + length, 8, dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, 11 + length, 8, dtype=torch.bfloat16) for _ in range(2))

    def read(*rows: Tensor) -> Tensor:
        return attend(nn.Identity(), *rows, None, prefix_tree=layout)[0]

    found, exact = read(query, key, value), read(query.float(), key.float(), value.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
