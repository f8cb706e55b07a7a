"""What a base says of responses, on disk for all runs: found by content, and not by runs, users or paths.

A folder per base holds segments: immutable .npy files of unsigned 64-bit numbers for n pairs of prompt and response.
Two rows [2, n] are the halves of the pairs' keys, sorted; what follows are the bits of their values [n, w]. Segments
are memory-mapped and searched by bisection. The name of a segment is the hash of its bytes, so half a file is
recognized, and two processes that write the same values write one file. A writer adds segments and never changes one;
many small segments are merged into a new one before they are removed. So a reader sees whole segments, whatever other
processes read, write or merge. A failure of the cache never stops a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
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
from prlhf.files import atomic_file
from prlhf.model import workers
from prlhf.model.personalized import unwrapped
from prlhf.model.quantized import scales
from prlhf.model.sharding import in_shards, on_first
from prlhf.progress import SILENT, Progress

VERSION = 1  # of the segments' format and of what a value means: a change leaves all old entries behind
MANY_SEGMENTS, SMALL = 16, 3 * 2**20  # more than MANY_SEGMENTS segments of less than SMALL numbers are merged
ADAPTER = re.compile(r"\.lora_\w+\.default(\.|$)")  # in the names of what PEFT puts beside a base's weights

Segment64 = NDArray[np.uint64]  # [2 + w, n]: the keys' rows, and w * n words of values
Value = float | NDArray[Any]


def base_key(lm: Any) -> str:
    """32 hex digits of everything that the base's values depend on, except for rounding.

    That is every bit of its weights and buffers, their precision, its config, and the code that reads them (the config
    has transformers' version). An adapter on the base and the place it was loaded from do not count. Weights are read
    at the speed of hashing, a gigabyte or more per second and core.
    """
    causal = unwrapped(lm)
    named = chain(causal.named_parameters(), causal.named_buffers(), scales(causal))
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


class BaseCache:
    """Values by key, in `folder`: a number in float64 each, or with `width` so many numbers in float32."""

    def __init__(self, folder: Path, progress: Progress = SILENT, width: int | None = None) -> None:
        self.folder, self._progress = folder, progress
        self._type = np.dtype("<f8") if width is None else np.dtype("<f4")
        self._width = width
        self._words = 1 if width is None else -(-width // 2)  # of a value
        self._segments: dict[str, Segment64] = {}
        self._writes = True
        self._reread()

    def find(self, keys: Sequence[bytes]) -> NDArray[Any]:
        """The values [n] or [n, width] of `keys`, nan where there is none.

        If two writers computed the same pair and rounded it differently, the one with the smaller first number counts,
        whatever the order of the segments.
        """
        wanted = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        found = np.full((len(keys), 8 // self._type.itemsize * self._words), np.nan, self._type)
        for segment in filter(np.size, self._segments.values()):
            (first, second), words = keys_and_words(segment)
            at = np.searchsorted(first, wanted[:, 0]).clip(max=len(first) - 1)
            (same,) = ((first[at] == wanted[:, 0]) & (second[at] == wanted[:, 1])).nonzero()
            values = words[at[same]].view(self._type)
            known = found[same]
            found[same] = np.where(values[:, :1] >= known[:, :1], known, values)
        return found[:, 0] if self._width is None else found[:, : self._width]

    def add(self, values: Mapping[bytes, Value]) -> None:
        """Write `values` as a segment. If that fails, it is reported once and nothing more is written."""
        if not values or not self._writes:
            return
        keys = np.frombuffer(b"".join(values), dtype="<u8").reshape(-1, 2).T
        numbers = np.zeros((len(values), 8 // self._type.itemsize * self._words), self._type)
        numbers[:, : self._width or 1] = np.array(list(values.values()), self._type).reshape(len(values), -1)
        try:
            self._write(keys, numbers.view("<u8"))
            self._reread()
            self._merge()
        except PrlhfError as error:
            self._give_up(error.message)

    def _give_up(self, why: str) -> None:
        self._writes = False
        self._progress.note(f"note: nothing more is written to the {self.folder.parent.name} cache: {why}")

    def _write(self, keys: Segment64, words: Segment64) -> str:
        """Write the distinct entries of `keys` [2, n] and `words` [n, w], sorted; returns the name of the segment."""
        order = np.lexsort((words.view(self._type)[:, 0], keys[1], keys[0]))
        keys = keys[:, order]
        first = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))
        file = io.BytesIO()
        np.save(file, segment_of(keys[:, first], words[order[first]]))
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
        small = {name: segment for name, segment in self._segments.items() if 0 < segment.size < SMALL}
        if len(small) > MANY_SEGMENTS:
            keys, words = zip(*map(keys_and_words, small.values()), strict=True)
            merged = self._write(np.concatenate(keys, axis=1), np.concatenate(words))
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

    def _open(self, name: str) -> Segment64:
        """A segment mapped into memory. A damaged one is removed, and an empty one returned."""
        path = self.folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, _hash).hexdigest() == path.stem:
                return np.asarray(np.load(path, mmap_mode="r"))
        self._progress.note(f"note: {path} is damaged: its values are computed again")
        self._remove([name])
        return np.empty((2 + self._words, 0), dtype="<u8")

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):  # a file that stays does no harm
                (self.folder / name).unlink()


def segment_of(keys: Segment64, words: Segment64) -> Segment64:
    """One array [2 + w, n] of `keys` [2, n] and `words` [n, w], a pair's words next to each other in memory."""
    segment = np.empty((2 + words.shape[1], len(words)), dtype="<u8")
    segment[:2] = keys
    segment[2:].reshape(words.shape)[:] = words
    return segment


def keys_and_words(segment: Segment64) -> tuple[Segment64, Segment64]:
    """The `keys` [2, n] and `words` [n, w] of `segment_of`, without a copy."""
    return segment[:2], segment[2:].reshape(segment.shape[1], -1)
