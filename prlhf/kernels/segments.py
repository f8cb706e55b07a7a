"""Segments: runs of packed columns, which see themselves causally and, whole, the segments above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Columns `start` to `end`, which continue the segments `above` (their numbers, from the root down)."""

    start: int
    end: int
    above: tuple[int, ...]
    depth: int  # tokens above, which is the position of its first column


def above(segments: Sequence[Segment], segment: Segment) -> list[slice]:
    """The columns that all of `segment` may see beside its own, from the root down."""
    return [slice(segments[i].start, segments[i].end) for i in segment.above]


def who_sees_whom(segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Which segment [n] may see which [n], and the segment [T] of each column."""
    sees = torch.eye(len(segments), dtype=torch.bool)
    of: list[int] = []
    for number, segment in enumerate(segments):
        sees[number, list(segment.above)] = True
        of += [number] * (segment.end - segment.start)
    return sees, torch.tensor(of)


def dense_mask(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Added to attention scores [1, 1, T, T]: 0 where a column may look, the lowest number elsewhere."""
    sees, of = who_sees_whom(segments)
    may = sees[of][:, of].tril()
    mask = torch.zeros(may.shape, dtype=dtype).masked_fill(~may, torch.finfo(dtype).min)
    return mask.to(device).view(1, 1, *may.shape)
