"""Attention over packed prefix trees: every segment attends to itself causally and to what it hangs off.

Three ways, equal to rounding. `segments`: transformers' attention interface calls `attend`, which runs one
`scaled_dot_product_attention` a segment over just the keys it may see, so no mask of [T, T] exists and nothing masked
is computed. `flex`: the same with one FlexAttention block mask a pack, for GPUs. `dense`: a float mask [1, 1, T, T]
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

from prlhf.model.cpu_attention import SegmentAttention
from prlhf.model.cpu_linear import has_onednn
from prlhf.model.prefix_tree import Pack, Segment, above

NAME = "prlhf_tree"
LONG = 256  # columns of a reading, from where on CPUs profit from attention of our own


def install(lm: Any) -> str:
    """Make `lm` attend over packs.

    Returns `segments`, on a GPU `flex`, or `dense` where its attention cannot be replaced.

    Anything that is no pack goes on through transformers' own `sdpa`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    own = "flex" if lm.device.type == "cuda" else "segments"
    if lm.config._attn_implementation == NAME:
        return own
    if lm.config._attn_implementation != "sdpa":
        return "dense"
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    lm.set_attn_implementation(NAME)
    return own if lm.config._attn_implementation == NAME else "dense"


def tree_inputs(pack: Pack, way: str, dtype: torch.dtype) -> dict[str, Any]:
    """What a language model's forward takes beside the embeddings, for `way` segments, flex or dense."""
    inputs: dict[str, Any] = {"position_ids": pack.positions, "use_cache": False}
    if way == "dense":
        return inputs | {"attention_mask": dense_mask(pack.segments, pack.ids.device, dtype)}
    # four dimensions: taken as it is, so that transformers makes no mask of its own
    inputs["attention_mask"] = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=pack.ids.device)
    return inputs | {"prefix_tree": Layout(pack, flex=way == "flex")}


class Layout:
    """What `attend` needs of a pack; made once a forward pass, read in every layer."""

    def __init__(self, pack: Pack, flex: bool) -> None:
        self.segments, self.flex, self._device = pack.segments, flex, pack.ids.device
        self._positions = pack.positions[0]
        self.long = max(segment.depth + segment.end - segment.start for segment in pack.segments) >= LONG
        self._masks: dict[Any, Any] = {}

    def tail_mask(self, queries: int, depth: int, window: int | None) -> Tensor:
        """May [n, depth + n] of the last n columns of depth + n see each other: causal, and within the window."""
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


def who_sees_whom(segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    """Which segment [n] may see which [n], and the segment [T] of each column."""
    sees = torch.eye(len(segments), dtype=torch.bool)
    of: list[int] = []
    for number, segment in enumerate(segments):
        sees[number, list(segment.above)] = True
        of += [number] * (segment.end - segment.start)
    return sees, torch.tensor(of)


def dense_mask(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Added to attention scores [1, 1, T, T]: 0 where a column may look, the least number elsewhere."""
    sees, of = who_sees_whom(segments)
    may = sees[of][:, of].tril()
    mask = torch.zeros(may.shape, dtype=dtype).masked_fill(~may, torch.finfo(dtype).min)
    return mask.to(device).view(1, 1, *may.shape)


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
    elif prefix_tree.long and query.dtype == torch.float32 and query.device.type == "cpu" and has_onednn():
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows = (query[0], key[0], value[0])
        out = SegmentAttention.apply(*rows, prefix_tree.segments, scale, sliding_window).unsqueeze(0)  # type: ignore
    else:
        out = over_segments(query, key, value, prefix_tree, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def over_segments(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None
) -> Tensor:
    """Attention [1, H, T, d], a segment at a time."""
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
    """FlexAttention: compiled on a GPU, once for each length of a pack; as it stands on a CPU, for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled if torch.cuda.is_available() else flex_attention  # type: ignore[return-value]
