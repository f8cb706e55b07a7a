"""Attention over packed prefix trees: every segment attends to itself causally and to the segments above it.

Three ways, equal to rounding. `segments`: transformers' attention interface calls `attend`, which runs one
`scaled_dot_product_attention` per segment over just the keys it may see, so no mask of [T, T] exists and nothing masked
is computed. `flex`: the same with one FlexAttention block mask per pack, for GPUs. `dense`: a float mask [1, 1, T, T]
for models with attention of their own (GPT-J), which take a four-dimensional mask as it is. Windows are counted in
position ids, as the model would count them if each reading stood alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from prlhf.kernels.onednn import faster, times, usable
from prlhf.kernels.segments import Segment, above, dense_mask, who_sees_whom

NAME = "prlhf_tree"
LONG = 256  # columns of a reading: from here on `SegmentAttention` is faster on CPUs
QUERIES = 256  # that it takes at a time; keys that the last of them may not see are not computed

Segments = tuple[Segment, ...]


def attend_over_packs(lm: Any) -> None:
    """Let the causal LM `lm` attend over packs, in place, if its attention can be replaced.

    Anything that is not a pack still goes through transformers' own `sdpa`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if implementation_of(lm.config) == "sdpa":
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        lm.set_attn_implementation(NAME)


def way_of(lm: Any) -> str:
    """How `lm` attends over packs: `segments`, on a GPU `flex`, or `dense` where its attention was not replaced."""
    if implementation_of(lm.config) != NAME:
        return "dense"
    return "flex" if lm.device.type == "cuda" else "segments"


def implementation_of(config: Any) -> str:
    """Which attention a model's config asks for, by transformers' names; "" if it does not say.

    transformers stores it under a private name, which is used nowhere else.
    """
    return str(getattr(config, "_attn_implementation", None) or "")


def tree_inputs(segments: Sequence[Segment], positions: Tensor, way: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a language model's forward takes in addition to the embeddings of a pack.

    `positions` [1, T] are the position ids of its columns, `way` is `segments`, `flex` or `dense`.
    """
    inputs: dict[str, Any] = {"position_ids": positions, "use_cache": False}
    if way == "dense":
        return inputs | {"attention_mask": dense_mask(segments, positions.device, dtype)}
    # transformers takes a mask of four dimensions as it is and does not make one
    inputs["attention_mask"] = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=positions.device)
    return inputs | {"prefix_tree": Layout(tuple(segments), positions[0], flex=way == "flex")}


class Layout:
    """What `attend` needs to know about a pack; made once per forward pass, used in every layer."""

    def __init__(self, segments: tuple[Segment, ...], positions: Tensor, flex: bool) -> None:
        self.segments, self.flex, self._device = segments, flex, positions.device
        self._positions = positions
        self.long = max(segment.depth + segment.end - segment.start for segment in segments) >= LONG
        self._masks: dict[Any, Any] = {}

    def tail_mask(self, queries: int, depth: int, window: int | None) -> Tensor:
        """Mask [n, depth + n]: what the last n of depth + n columns may see, causally and within the window."""
        if (key := (queries, depth, window)) not in self._masks:
            row = torch.arange(depth, depth + queries, device=self._device).unsqueeze(1)
            column = torch.arange(depth + queries, device=self._device)
            may = column <= row
            self._masks[key] = may if window is None else may & (row - column < window)
        return self._masks[key]  # type: ignore[no-any-return]

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's mask of the whole pack."""
        if window not in self._masks:
            from torch.nn.attention.flex_attention import create_block_mask

            columns, position = self.segments[-1].end, self._positions
            sees, of = (t.to(self._device) for t in who_sees_whom(self.segments))

            def may(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = sees[of[query], of[key]] & (key <= query)
                return seen if window is None else seen & (position[query] - position[key] < window)

            self._masks[window] = create_block_mask(may, None, None, columns, columns, device=self._device)
        return self._masks[window]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    prefix_tree: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: query [B, H, T, d], key and value [B, H_kv, T, d] -> [B, T, H, d]."""
    if prefix_tree is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown:
        raise ValueError(f"prefix trees do not know attention with {unknown[0]}")
    if prefix_tree.flex:
        mask = prefix_tree.block_mask(sliding_window)
        shared_heads = query.shape[1] != key.shape[1]
        out = _flex()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=shared_heads)
    elif query.device.type == "cpu":
        out = _on_cpu(query, key, value, prefix_tree, scaling, sliding_window)
    else:
        out = over_segments(query, key, value, prefix_tree, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _on_cpu(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    """Attention [1, H, T, d], by the faster of two ways, both of which take fp32.

    In bf16, PyTorch's kernel for CPUs takes up to 2.6 times as long; in fp32, it is the faster one where PyTorch's
    products are (docs/PERFORMANCE.md).
    """
    kind = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    if not layout.long or not usable() or (kind == torch.float32 and not faster()):
        return over_segments(query, key, value, layout, scaling, window).to(kind)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = SegmentAttention.apply(  # type: ignore[no-untyped-call]
        query[0], key[0], value[0], layout.segments, scale, window, kind
    )
    return found.unsqueeze(0).to(kind)


def over_segments(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """Attention [1, H, T, d], one segment at a time."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    # The gradient of a split is one copy; those of slices would be tensors of all columns, mostly zeros, to be summed.
    queries, keys, values = (x.split([s.end - s.start for s in layout.segments], 2) for x in (query, key, value))
    parts = []
    for number, segment in enumerate(layout.segments):
        seen_keys, seen_values = (torch.cat([x[i] for i in (*segment.above, number)], 2) for x in (keys, values))
        length, total = segment.end - segment.start, seen_keys.shape[2]
        window_here = None if window is None or window >= total else window
        plain = not segment.above and window_here is None
        mask = None if plain else layout.tail_mask(length, segment.depth, window_here)
        parts.append(
            F.scaled_dot_product_attention(queries[number], seen_keys, seen_values, mask, is_causal=plain, scale=scale)
        )
    return torch.cat(parts, 2)


@cache
def _flex() -> Callable[..., Any]:
    """FlexAttention: compiled on a GPU, once for each length of a pack; not compiled on a CPU, for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled if torch.cuda.is_available() else flex_attention  # type: ignore[return-value]


# ---- long readings on CPUs ----
#
# PyTorch's own kernel is slow in bf16; in fp32 it multiplies through MKL (see onednn.py), and on AMD's chips its
# backward pass takes twice as long as this one. Keys and values are neither repeated for the heads that share them nor
# copied for each segment; scores are computed again in the backward pass.


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
    """softmax(scale Q K^T) V of query [H, T, d], key and value [H_kv, T, d] in fp32; a window is a number of positions.

    Scores, and their gradient from the output's, are products in fp32; weights and that gradient are `rounded` to bf16
    for the other four, beside a base in bf16, as FlashAttention rounds them (arXiv 2307.08691).
    """

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
        rounded: torch.dtype,
    ) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for block, _, heads, keys, values in _tasks(query, key, value, segments):
            weights = _weights(query, heads, block, keys, scale, window)
            out[heads, block.start : block.end] = _times(weights, values.t(), rounded).view_as(
                out[heads, block.start : block.end]
            )
        ctx.save_for_backward(query, key, value, out)
        ctx.segments, ctx.scale, ctx.window, ctx.rounded = segments, scale, window, rounded
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
            block.add_to(grad_value[head], _times(weights.t(), own_grad.t(), ctx.rounded))
            slope = times(own_grad, values).sub_(inner[heads, rows].reshape(-1, 1)).mul_(weights).mul_(ctx.scale)
            slope = slope.to(ctx.rounded)
            grad_query[heads, rows] = _times(slope, keys.t(), ctx.rounded).view_as(grad_query[heads, rows])
            block.add_to(grad_key[head], _times(slope.t(), own_query.t(), ctx.rounded))
        return grad_query, grad_key, grad_value, None, None, None, None


def _times(left: Tensor, right: Tensor, rounded: torch.dtype) -> Tensor:
    """Left [m, k] @ right [n, k]^T in fp32, of factors that are rounded."""
    if rounded == torch.float32:
        return times(left, right)
    return (left.to(rounded) @ right.to(rounded).t()).float()


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
