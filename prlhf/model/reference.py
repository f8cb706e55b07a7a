"""What the base says of responses, in memory for a run: computed once for each pair of prompt and response.

The log-probs of the reference, and in response_states.py the hidden states. base_cache.py keeps both on disk.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.files import cache_folder
from prlhf.model import workers
from prlhf.model.base_cache import BaseCache, Value, base_key, pair_key
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.readings import Reading
from prlhf.progress import SILENT, Progress

SAVE_EVERY = 1024  # computed values

Pair = tuple[list[int], list[int]]  # ids of prompt and response


class BaseValues:
    """A value per response under the base: looked up in memory, then in `cache`, and computed by `read` otherwise.

    The base sees neither the user's id nor text about the user, so one value serves every user. Values are computed as
    they are asked for, or before in one pass (`fill`); with full fine-tuning that must come before the first step. They
    go to the cache after every SAVE_EVERY of them, with `save`, and when the object or the process ends.
    """

    def __init__(self, label: str, read: Callable[[Sequence[Reading]], Tensor], cache: BaseCache | None = None) -> None:
        self._label, self._read, self._cache = label, read, cache
        self._known: dict[bytes, Value] = {}
        self._unsaved: dict[bytes, Value] = {}
        self.cached = self.computed = 0  # distinct pairs that were asked for: found on disk, and not
        if cache:
            weakref.finalize(self, cache.add, self._unsaved)

    def of(self, pairs: Sequence[Pair]) -> list[Value]:
        """The value of each of `pairs`."""
        keys = [pair_key(*pair) for pair in pairs]
        self._learn(self._missing(dict(zip(keys, pairs, strict=True))))
        return [self._known[key] for key in keys]

    def fill(self, data: Sequence[Encoded], batch_size: int, progress: Progress = SILENT) -> None:
        """Compute what is missing of `data` in one pass, the responses of `batch_size` comparisons at a time.

        All workers must call it with the same data; they share what any of them misses.
        """
        pairs = {pair_key(*pair): pair for pair in chain.from_iterable(map(pairs_of, data))}
        missing = set().union(*workers.gather(list(self._missing(pairs))))
        if not missing:
            return
        order = sorted(missing, key=lambda key: (len(pairs[key][0]), pairs[key]))  # prompts together
        progress.start(self._label, len(order))
        each = 2 * batch_size * workers.count()
        for start in range(0, len(order), each):
            chunk = order[start : start + each]
            found = self._compute([pairs[key] for key in workers.spread(chunk)])
            values = dict(zip(chunk, workers.collect(found, len(chunk)), strict=True))
            self._keep(values, {key: values[key] for key in workers.own(chunk)})
            progress.advance(len(chunk))
        progress.finish()
        self.save()

    def save(self) -> None:
        """Write to disk what has been computed since the last call."""
        if self._cache:
            self._cache.add(self._unsaved)
        self._unsaved.clear()

    def _missing(self, pairs: dict[bytes, Pair]) -> dict[bytes, Pair]:
        """The `pairs`, by key, that must be computed; values on disk are read into memory."""
        unknown = [key for key in pairs if key not in self._known]
        if self._cache and unknown:
            found = dict(zip(unknown, _plain(self._cache.find(unknown)), strict=True))
            self._known.update(_without_nan(found))
            self.cached += sum(key in self._known for key in unknown)
        return {key: pairs[key] for key in unknown if key not in self._known}

    def _learn(self, pairs: dict[bytes, Pair]) -> None:
        if pairs:
            values = dict(zip(pairs, self._compute(list(pairs.values())), strict=True))
            self._keep(values, values)

    def _keep(self, values: dict[bytes, Value], computed: dict[bytes, Value]) -> None:
        """Keep `values` in memory, and those that were `computed` here for the cache."""
        self._known |= values
        self.computed += len(computed)
        self._unsaved |= _without_nan(computed)
        if len(self._unsaved) >= SAVE_EVERY:
            self.save()

    def _compute(self, pairs: Sequence[Pair]) -> list[Value]:
        return _plain(self._read([Reading(0, tuple(prompt), tuple(response)) for prompt, response in pairs]).numpy())


def pairs_of(comparison: Encoded) -> tuple[Pair, Pair]:
    """Prompt and response of both responses of a comparison, the chosen one's first."""
    return (comparison.prompt, comparison.chosen), (comparison.prompt, comparison.rejected)


def _plain(values: Any) -> list[Value]:
    """The values of an array [n] as floats, or the rows of an array [n, w]."""
    found: list[Value] = values.tolist() if values.ndim == 1 else list(values)
    return found


def _without_nan(values: dict[bytes, Value]) -> dict[bytes, Value]:
    """A value with nan is none on disk, and is computed again by other runs."""
    return {key: value for key, value in values.items() if not np.isnan(value).any()}


class Reference(BaseValues):
    """Log-probs of responses under the base, in nats. Both terms of the objective compare with the same ones."""

    def __init__(self, engine: Engine, cache: BaseCache | None = None) -> None:
        super().__init__("reference", engine.reference, cache)

    def log_probs(self, batch: Sequence[Encoded]) -> Tensor:
        """[2B] for B comparisons: chosen first, then rejected."""
        pairs = [pairs_of(comparison) for comparison in batch]
        return torch.tensor(self.of([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]))


def open_cache(lm: Any, progress: Progress = SILENT) -> BaseCache:
    """The cache of the reference of the base under `lm`. Call it before the weights are trained."""
    return BaseCache(cache_folder() / "reference" / base_key(lm), progress)
