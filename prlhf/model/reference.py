"""Log-probs of responses under the base: in memory for a run, and on disk for all runs."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from prlhf.model import workers
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.prefix_tree import Reading
from prlhf.model.reference_cache import ReferenceCache, pair_key
from prlhf.progress import SILENT, Progress

SAVE_EVERY = 1024  # computed values

Pair = tuple[list[int], list[int]]  # ids of prompt and response


class Reference:
    """Log-probs of responses under the base, looked for in memory, then in `cache`, then computed.

    The reference sees neither the user's id nor text about the user, so one value serves every user and both
    terms. Filled as batches come by; with full fine-tuning it must be filled before the first step. What is computed
    goes to the cache every now and then, with `save`, and when the Reference or the process ends.
    """

    def __init__(self, engine: Engine, cache: ReferenceCache | None = None) -> None:
        self._engine, self._cache = engine, cache
        self._known: dict[bytes, float] = {}
        self._unsaved: dict[bytes, float] = {}
        self.cached = self.computed = 0  # distinct pairs of those asked for: found on disk, and not
        if cache:
            weakref.finalize(self, cache.add, self._unsaved)

    def log_probs(self, batch: Sequence[Encoded]) -> Tensor:
        """[2B] for B comparisons: chosen first, then rejected."""
        wanted = [(e.prompt, e.chosen) for e in batch] + [(e.prompt, e.rejected) for e in batch]
        keys = [pair_key(*pair) for pair in wanted]
        self._learn(self._missing(dict(zip(keys, wanted, strict=True))))
        return torch.tensor([self._known[key] for key in keys])

    def fill(self, data: Sequence[Encoded], batch_size: int, progress: Progress = SILENT) -> None:
        """Know all of `data` in one pass over what is missing, responses of `batch_size` comparisons at a time.

        Workers share what any of them misses; to be asked of all of them, with the same data.
        """
        pairs = {
            pair_key(*pair): pair
            for pair in chain.from_iterable(((e.prompt, e.chosen), (e.prompt, e.rejected)) for e in data)
        }
        missing = set().union(*workers.gather(list(self._missing(pairs))))
        if not missing:
            return
        order = sorted(missing, key=lambda key: (len(pairs[key][0]), pairs[key]))  # prompts together
        progress.start("reference", len(order))
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
        """Put on disk what has been computed since the last time."""
        if self._cache:
            self._cache.add(self._unsaved)
        self._unsaved.clear()

    def _missing(self, pairs: dict[bytes, Pair]) -> dict[bytes, Pair]:
        """Those of `pairs`, by key, that are to be computed; what is on disk is known from here on."""
        unknown = [key for key in pairs if key not in self._known]
        if self._cache and unknown:
            found = zip(unknown, self._cache.find(unknown).tolist(), strict=True)
            self._known.update((key, value) for key, value in found if value == value)  # nan: not there
            self.cached += sum(key in self._known for key in unknown)
        return {key: pairs[key] for key in unknown if key not in self._known}

    def _learn(self, pairs: dict[bytes, Pair]) -> None:
        if pairs:
            values = dict(zip(pairs, self._compute(list(pairs.values())), strict=True))
            self._keep(values, values)

    def _keep(self, values: dict[bytes, float], computed: dict[bytes, float]) -> None:
        """Know `values`; those that were computed here go to the cache."""
        self._known |= values
        self.computed += len(computed)
        self._unsaved |= {key: value for key, value in computed.items() if value == value}
        if len(self._unsaved) >= SAVE_EVERY:
            self.save()

    def _compute(self, pairs: Sequence[Pair]) -> list[float]:
        """Log-probs (nats) of the responses after their prompts."""
        readings = [Reading(0, tuple(prompt), tuple(response)) for prompt, response in pairs]
        values: list[float] = self._engine.reference(readings).tolist()
        return values
