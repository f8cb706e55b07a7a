"""A key-value cache with a slot for each row that is being written, and the masks that go with it.

Unlike transformers' own cache it is allocated ahead and written in place; theirs copies itself whole for each token.
Rows start at column 0 and have lengths of their own, so none is padded, a row that ends frees its slot, and a row that
joins disturbs no other. Every layer keeps all columns.

transformers measures causality and sliding windows in columns of the cache, counted from its end, as if all rows ended
there. The masks here measure them in each row's own positions. They have four dimensions, which transformers takes as
they are: float masks, since bool ones are silently wrong with eager attention, and for models that mix kinds of layers
one mask per kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from typing_extensions import override

from prlhf.generate.prefixes import States
from prlhf.model.base import FULL, SLIDING, window_of


class SlotCache(Cache):
    """Room for `rows` rows of `columns` columns in every layer.

    Call `begin` or `go_on` before each forward pass, to say what it is.
    """

    def __init__(self, rows: int) -> None:
        new_layer: Any = lambda: SlotCacheLayer(self)  # noqa: E731  (typed as a class, and only called)
        super().__init__(layer_class_to_replicate=new_layer)
        self.rows, self.columns = rows, 0
        self.slots = torch.empty(0, dtype=torch.long)  # of the forward's rows [N]
        self.lengths: Tensor | None = None  # columns that its rows have had so far [N]; None: it is their beginning
        self.past = 0  # columns before it, of the longest row

    @property
    def end(self) -> int:
        """Columns of the longest row after a forward pass of one token each."""
        return self.past + 1

    def begin(self, slots: Tensor, past: int = 0) -> None:
        """The next forward pass reads the rows in `slots` [N] from column `past` on, padded on the right."""
        self.slots, self.lengths, self.past = slots, None, past

    def go_on(self, lengths: Tensor, longest: int) -> None:
        """The next forward pass reads one token for each of the first N slots, after `lengths` [N] up to `longest`."""
        self.slots = torch.arange(len(lengths), device=lengths.device)
        self.lengths, self.past = lengths, longest

    def copy(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first `columns` columns of slots `source` [M] to slots `target` [M]."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):  # type: ignore[union-attr]
                states[target, :, :columns] = states[source, :, :columns]  # type: ignore[index]

    def states(self, slot: int, columns: int) -> States:
        """A copy of the first `columns` columns of `slot`."""
        return [(one.keys[slot, :, :columns].clone(), one.values[slot, :, :columns].clone()) for one in self.layers]  # type: ignore[index, union-attr]

    def put(self, slot: int, states: States, columns: int) -> None:
        """Write the first `columns` columns of `states` to `slot`."""
        self.layers += [SlotCacheLayer(self) for _ in states[len(self.layers) :]]
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            assert isinstance(layer, SlotCacheLayer)
            layer.make_room(keys[None], values[None])
            for have, given in ((layer.keys, keys), (layer.values, values)):
                have[slot, :, :columns] = given[:, :columns]  # type: ignore[index]


class SlotCacheLayer(DynamicLayer):
    """One layer's keys and values: [rows, heads, columns, d_head] each."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache = cache

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self.make_room(key_states, value_states)
        slots, lengths, past = self.cache.slots, self.cache.lengths, self.cache.past
        if lengths is None:
            end = past + key_states.shape[2]
            keys[slots, :, past:end], values[slots, :, past:end] = key_states, value_states
            return (keys[slots, :, :end], values[slots, :, :end]) if past else (key_states, value_states)
        keys[slots, :, lengths], values[slots, :, lengths] = key_states[:, :, 0], value_states[:, :, 0]
        return keys[: len(slots), :, : self.cache.end], values[: len(slots), :, : self.cache.end]

    def make_room(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values, with room for all columns of states like these [N, heads, L, d_head]."""
        self.keys, self.values = self._roomy(self.keys, key_states), self._roomy(self.values, value_states)
        self.is_initialized = True
        return self.keys, self.values

    def _roomy(self, have: Tensor | None, new: Tensor) -> Tensor:
        """`have`, or a larger copy if it is too small, filled with zeros: masked numbers must still be finite."""
        if have is not None and have.shape[2] >= self.cache.columns:
            return have
        larger = new.new_zeros(self.cache.rows, new.shape[1], self.cache.columns, new.shape[3])
        if have is not None:
            larger[:, :, : have.shape[2]] = have
        return larger

    @override
    def get_seq_length(self) -> int:
        return self.cache.past


# ---- what a row's next token may look at ----


def decode_masks(config: Any, lengths: Tensor, end: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """For one token after each row's `lengths` [N] earlier ones: masks [N, 1, 1, end], 0 or the lowest number."""
    column = torch.arange(end, device=lengths.device)
    past = column <= lengths[:, None]
    window = window_of(config)
    if window is None:
        return _float(past, dtype)
    near = _float(past & (column > lengths[:, None] - window), dtype)
    return near if getattr(config, "layer_types", None) is None else {FULL: _float(past, dtype), SLIDING: near}


def _float(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, lowest)[:, None, None]


def known_kinds(config: Any) -> bool:
    """Whether these masks can express the attention of every layer."""
    kinds = set(getattr(config, "layer_types", None) or [FULL])
    others = ("attention_types", "alibi", "attention_chunk_size")
    return kinds <= {FULL, SLIDING} and not any(getattr(config, name, None) for name in others)
