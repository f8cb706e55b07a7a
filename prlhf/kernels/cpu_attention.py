"""Attention over the segments of a prefix tree in fp32 on CPUs, with oneDNN's matrix product.

It is for long readings: PyTorch's own kernel multiplies through MKL (see onednn.py), and its backward pass takes twice
as long as this one. Keys and values are neither repeated for the heads that share them nor copied for each segment;
scores are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from prlhf.kernels.onednn import times
from prlhf.kernels.segments import Segment, above

Segments = tuple[Segment, ...]
QUERIES = 256  # at a time; keys that the last of them may not see are not computed


@dataclass(frozen=True)
class QueryBlock:
    """Queries of a segment, columns `start` to `end`, and the keys that they may see.

    The keys are runs of columns, the last of which ends with the queries' own.
    """

    start: int
    end: int
    seen: tuple[slice, ...]

    def gather(self, x: Tensor) -> Tensor:
        """X [H, T, d] -> [H, m, d] at the seen columns, contiguous."""
        found = torch.cat([x[:, part] for part in self.seen], 1) if len(self.seen) > 1 else x[:, self.seen[0]]
        return found.contiguous()

    def add_to(self, total: Tensor, part: Tensor) -> None:
        """Add part [m, d] to total [T, d] at the seen columns."""
        start = 0
        for columns in self.seen:
            end = start + columns.stop - columns.start
            total[columns] += part[start:end]
            start = end


def query_blocks(segments: Segments) -> Iterator[QueryBlock]:
    """Yield the segments' queries in blocks of at most QUERIES columns, each with the keys that it may see."""
    for segment in segments:
        for start in range(segment.start, segment.end, QUERIES):
            end = min(start + QUERIES, segment.end)
            yield QueryBlock(start, end, (*above(segments, segment), slice(segment.start, end)))


class SegmentAttention(torch.autograd.Function):
    """softmax(scale Q K^T) V with query [H, T, d], key and value [H_kv, T, d]; a window is a number of positions."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for block, _, heads, keys, values in _tasks(query, key, value, segments):
            weights = _weights(query, heads, block, keys, scale, window)
            out[heads, block.start : block.end] = times(weights, values.t()).view_as(
                out[heads, block.start : block.end]
            )
        ctx.save_for_backward(query, key, value, out)
        ctx.segments, ctx.scale, ctx.window = segments, scale, window
        return out

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, out = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        inner = (grad * out).sum(-1)
        for block, head, heads, keys, values in _tasks(query, key, value, ctx.segments):
            rows = slice(block.start, block.end)
            weights = _weights(query, heads, block, keys, ctx.scale, ctx.window)
            own_grad, own_query = (x[heads, rows].reshape(-1, x.shape[-1]) for x in (grad, query))
            block.add_to(grad_value[head], times(weights.t(), own_grad.t()))
            slope = times(own_grad, values).sub_(inner[heads, rows].reshape(-1, 1)).mul_(weights).mul_(ctx.scale)
            grad_query[heads, rows] = times(slope, keys.t()).view_as(grad_query[heads, rows])
            block.add_to(grad_key[head], times(slope.t(), own_query.t()))
        return grad_query, grad_key, grad_value, None, None, None


def _tasks(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments
) -> Iterator[tuple[QueryBlock, int, slice, Tensor, Tensor]]:
    """Yield each block with each head of keys, the query heads that share it, and its keys and values."""
    group = len(query) // len(key)
    for block in query_blocks(segments):
        for head, (keys, values) in enumerate(zip(block.gather(key), block.gather(value), strict=True)):
            yield block, head, slice(head * group, (head + 1) * group), keys, values


def _weights(query: Tensor, heads: slice, block: QueryBlock, keys: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention weights [heads x n, m] of a block's queries; the last n of the m keys are their own columns."""
    own = query[heads, block.start : block.end]
    rows, columns = own.shape[1], len(keys)
    scores = times((own * scale).reshape(-1, own.shape[-1]), keys).view(len(own), rows, columns)
    hidden = torch.ones(rows, rows, dtype=torch.bool).triu_(1)
    scores[:, :, columns - rows :].masked_fill_(hidden, -torch.inf)
    if window is not None and window < columns:
        away = torch.arange(columns - rows, columns).unsqueeze(1) - torch.arange(columns)
        scores.masked_fill_(away >= window, -torch.inf)
    return scores.softmax(-1).view(-1, columns)
