"""Log-probs of responses under the base: in memory for a run, and on disk for all runs.

The cache finds values by content: base, prompt and response, and not runs, users or paths. A folder per base holds
segments: immutable .npy files of unsigned 64-bit numbers [3, n], whose rows are the two halves of a pair's key, sorted,
and the bits of its value (float64, nats). They are memory-mapped and searched by bisection. The name of a segment is
the hash of its bytes, so half a file is recognized, and two processes that write the same values write one file. A
writer adds segments and never changes one; many small segments are merged into a new one before they are removed. So a
reader sees whole segments, whatever other processes read, write or merge. A failure of the cache never stops a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file, cache_folder
from prlhf.model import workers
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.personalized import unwrapped
from prlhf.model.readings import Reading
from prlhf.model.sharding import in_shards, on_first
from prlhf.progress import SILENT, Progress

SAVE_EVERY = 1024  # computed values
VERSION = 1  # of the segments' format and of what a value means: a change leaves all old entries behind
MANY_SEGMENTS, SMALL = 16, 2**20  # more than MANY_SEGMENTS segments of less than SMALL entries are merged
ADAPTER = re.compile(r"\.lora_\w+\.default(\.|$)")  # in the names of what PEFT puts beside a base's weights

CacheSegment = NDArray[np.uint64]  # [3, n]

Pair = tuple[list[int], list[int]]  # ids of prompt and response


class Reference:
    """Log-probs of responses under the base: looked up in memory, then in `cache`, and computed otherwise.

    The reference sees neither the user's id nor text about the user, so one value serves every user and both
    terms. It is filled as batches come; with full fine-tuning it must be filled before the first step. Computed values
    go to the cache after every SAVE_EVERY of them, with `save`, and when the Reference or the process ends.
    """

    def __init__(self, engine: Engine, cache: ReferenceCache | None = None) -> None:
        self._engine, self._cache = engine, cache
        self._known: dict[bytes, float] = {}
        self._unsaved: dict[bytes, float] = {}
        self.cached = self.computed = 0  # distinct pairs that were asked for: found on disk, and not
        if cache:
            weakref.finalize(self, cache.add, self._unsaved)

    def log_probs(self, batch: Sequence[Encoded]) -> Tensor:
        """[2B] for B comparisons: chosen first, then rejected."""
        wanted = [(e.prompt, e.chosen) for e in batch] + [(e.prompt, e.rejected) for e in batch]
        keys = [pair_key(*pair) for pair in wanted]
        self._learn(self._missing(dict(zip(keys, wanted, strict=True))))
        return torch.tensor([self._known[key] for key in keys])

    def fill(self, data: Sequence[Encoded], batch_size: int, progress: Progress = SILENT) -> None:
        """Compute what is missing of `data` in one pass, the responses of `batch_size` comparisons at a time.

        All workers must call it with the same data; they share what any of them misses.
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
        """Write to disk what has been computed since the last call."""
        if self._cache:
            self._cache.add(self._unsaved)
        self._unsaved.clear()

    def _missing(self, pairs: dict[bytes, Pair]) -> dict[bytes, Pair]:
        """The `pairs`, by key, that must be computed; values on disk are read into memory."""
        unknown = [key for key in pairs if key not in self._known]
        if self._cache and unknown:
            found = zip(unknown, self._cache.find(unknown).tolist(), strict=True)
            self._known.update((key, value) for key, value in found if value == value)  # nan: it has none
            self.cached += sum(key in self._known for key in unknown)
        return {key: pairs[key] for key in unknown if key not in self._known}

    def _learn(self, pairs: dict[bytes, Pair]) -> None:
        if pairs:
            values = dict(zip(pairs, self._compute(list(pairs.values())), strict=True))
            self._keep(values, values)

    def _keep(self, values: dict[bytes, float], computed: dict[bytes, float]) -> None:
        """Keep `values` in memory, and those that were `computed` here for the cache."""
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


# ---- on disk ----


def open_cache(lm: Any, progress: Progress = SILENT) -> ReferenceCache:
    """The cache of the base under `lm`. Call it before the weights are trained."""
    return ReferenceCache(cache_folder() / "reference" / base_key(lm), progress)


def base_key(lm: Any) -> str:
    """32 hex digits of everything that the base's log-probs depend on, except for rounding.

    That is every bit of its weights and buffers, their precision, its config, and the code that reads them (the config
    has transformers' version). An adapter on the base and the place it was loaded from do not count. Weights are read
    at the speed of hashing, a gigabyte or more per second and core.
    """
    causal = unwrapped(lm)
    named = chain(causal.named_parameters(), causal.named_buffers())
    weights = [(name.replace(".base_layer.", "."), value) for name, value in named if not ADAPTER.search(name)]
    config = {key: value for key, value in causal.config.to_dict().items() if not key.startswith("_")}
    kind = f"{type(causal).__module__}.{type(causal).__qualname__}"
    digest = _hash(json.dumps([VERSION, kind, config], sort_keys=True, default=str).encode())
    for (name, value), content in zip(weights, _contents([value for _, value in weights]), strict=True):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {content}\n".encode())
    return workers.from_first(digest.hexdigest())


def _contents(values: Sequence[Tensor]) -> Iterator[str]:
    """A hash of each. Weights in shards are gathered one by one, and hashed by the first worker."""
    if any(in_shards(value) for value in values):
        yield from (_content(on_first(value)) for value in values)
        return
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        yield from pool.map(_content, values)


def _content(value: Tensor) -> str:
    return _hash(value.detach().cpu().flatten().view(torch.uint8).numpy().data).hexdigest()


def _hash(data: bytes | memoryview = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=16)


def pair_key(prompt: Sequence[int], response: Sequence[int]) -> bytes:
    """16 bytes of the token ids. They begin with the prompt's length, so that two ways to split a text differ."""
    return _hash(np.array([len(prompt), *prompt, *response], dtype="<i8").tobytes()).digest()


class ReferenceCache:
    """Values by key, in `folder`."""

    def __init__(self, folder: Path, progress: Progress = SILENT) -> None:
        self.folder, self._progress = folder, progress
        self._segments: dict[str, CacheSegment] = {}
        self._writes = True
        self._reread()

    def find(self, keys: Sequence[bytes]) -> NDArray[np.float64]:
        """The values of `keys`, nan where there is none.

        If two writers computed the same pair and rounded it differently, the smaller value counts, whatever the order
        of the segments.
        """
        wanted = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        found = np.full(len(keys), np.nan)
        for first, second, values in filter(np.size, self._segments.values()):
            at = np.searchsorted(first, wanted[:, 0]).clip(max=len(first) - 1)
            same = (first[at] == wanted[:, 0]) & (second[at] == wanted[:, 1])
            found = np.fmin(found, np.where(same, values[at].view("<f8"), np.nan))
        return found

    def add(self, values: Mapping[bytes, float]) -> None:
        """Write `values` as a segment. If that fails, it is reported once and nothing more is written."""
        if not values or not self._writes:
            return
        rows = np.empty((3, len(values)), dtype="<u8")
        rows[:2] = np.frombuffer(b"".join(values), dtype="<u8").reshape(-1, 2).T
        rows[2] = np.array(list(values.values()), dtype="<f8").view("<u8")
        try:
            self._write(rows)
            self._reread()
            self._merge()
        except PrlhfError as error:
            self._give_up(error.message)

    def _give_up(self, why: str) -> None:
        self._writes = False
        self._progress.note(f"note: nothing more is written to the reference cache: {why}")

    def _write(self, rows: CacheSegment) -> str:
        """Write the distinct entries of `rows`, sorted; returns the name of the segment."""
        rows = rows[:, np.lexsort((rows[2].view("<f8"), rows[1], rows[0]))]
        first = np.append(True, (rows[:2, 1:] != rows[:2, :-1]).any(0))
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(rows[:, first]))
        name = f"{_hash(file.getbuffer()).hexdigest()}.npy"
        with atomic_file(self.folder / name) as beside:
            beside.write_bytes(file.getbuffer())
        self._segments.pop(name, None)  # a damaged file of that name may have been there
        return name

    def _merge(self) -> None:
        """Merge many small segments into one.

        Another process may merge them at the same time: then every entry is there twice, and never missing, because
        segments are removed only after the merged one is written.
        """
        small = {name: rows for name, rows in self._segments.items() if rows.shape[1] < SMALL}
        if len(small) > MANY_SEGMENTS:
            merged = self._write(np.concatenate(list(small.values()), axis=1))
            self._remove(small.keys() - {merged})
            self._reread()

    def _reread(self) -> None:
        """Open the segments that are in the folder; list it again if another process merges meanwhile."""
        for _ in range(100):
            known = self._segments
            try:
                names = sorted(path.name for path in self.folder.glob("*.npy"))
                self._segments = {name: known[name] if name in known else self._open(name) for name in names}
                break
            except FileNotFoundError:
                continue
            except OSError as error:
                self._give_up(f"cannot read {self.folder}: {one_line(error)}")
                break

    def _open(self, name: str) -> CacheSegment:
        """A segment mapped into memory. A damaged one is removed, and an empty one returned."""
        path = self.folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, _hash).hexdigest() == path.stem:
                return np.asarray(np.load(path, mmap_mode="r"))
        self._progress.note(f"note: {path} is damaged: its values are computed again")
        self._remove([name])
        return np.empty((3, 0), dtype="<u8")

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):  # a file that stays does no harm
                (self.folder / name).unlink()
