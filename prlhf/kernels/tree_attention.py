"""Attention over packed prefix trees: every segment attends to itself causally and to the segments above it.

Three ways, equal to rounding. `segments`: transformers' attention interface calls `attend`, which runs one
`scaled_dot_product_attention` per segment over just the keys it may see, so no mask of [T, T] exists and nothing masked
is computed. `flex`: the same with one FlexAttention block mask per pack, for GPUs. `dense`: a float mask [1, 1, T, T]
for models with attention of their own (GPT-J), which take a four-dimensional mask as it is. Windows are counted in
position ids, as the model would count them if each reading stood alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prlhf.kernels.cpu_attention import SegmentAttention
from prlhf.kernels.onednn import usable
from prlhf.kernels.segments import Segment, above, dense_mask, who_sees_whom

NAME = "prlhf_tree"
LONG = 256  # columns of a reading: from here on cpu_attention.py is faster on CPUs


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
    elif prefix_tree.long and query.dtype == torch.float32 and query.device.type == "cpu" and usable():
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows = (query[0], key[0], value[0])
        out = SegmentAttention.apply(*rows, prefix_tree.segments, scale, sliding_window).unsqueeze(0)  # type: ignore
    else:
        out = over_segments(query, key, value, prefix_tree, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def over_segments(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """Attention [1, H, T, d], one segment at a time."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    parts = []
    for segment in layout.segments:
        own = slice(segment.start, segment.end)
        seen = [*above(layout.segments, segment), own]
        keys, values = (torch.cat([x[:, :, part] for part in seen], 2) for x in (key, value))
        length, total = segment.end - segment.start, keys.shape[2]
        window_here = None if window is None or window >= total else window
        plain = not segment.above and window_here is None
        mask = None if plain else layout.tail_mask(length, segment.depth, window_here)
        parts.append(F.scaled_dot_product_attention(query[:, :, own], keys, values, mask, is_causal=plain, scale=scale))
    return torch.cat(parts, 2)


@cache
def _flex() -> Callable[..., Any]:
    """FlexAttention: compiled on a GPU, once for each length of a pack; not compiled on a CPU, for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled if torch.cuda.is_available() else flex_attention  # type: ignore[return-value]
