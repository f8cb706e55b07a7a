"""Reference log-probs on disk, found by content: base, prompt and response, and nothing of runs, users or paths.

A folder per base holds segments: immutable .npy files of unsigned 64-bit numbers [3, n], whose rows are the two halves
of a pair's key, sorted, and the bits of its value (float64, nats). They are memory-mapped and searched by bisection. A
segment's name is the hash of its bytes: half a file is known by it, and two processes that write the same write one
file. A writer adds segments and never changes one; many small ones are merged into a new one before they go. So a
reader sees whole segments, whoever else reads, writes or merges. Nothing that goes wrong here stops a run.
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

from prlhf.config import cache_folder
from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file
from prlhf.model import workers
from prlhf.model.personalized import unwrapped
from prlhf.model.sharding import in_shards, on_first
from prlhf.progress import SILENT, Progress

VERSION = 1  # of the segments' format and of what a value means: a change leaves all old entries behind
MANY, SMALL = 16, 2**20  # more than MANY segments of less than SMALL entries are merged
ADAPTER = re.compile(r"\.lora_\w+\.default(\.|$)")  # in the names of what PEFT puts beside a base's weights

Segment = NDArray[np.uint64]  # [3, n]


def open_cache(lm: Any, progress: Progress = SILENT) -> ReferenceCache:
    """The cache of the base under `lm`, to be asked for before its weights are trained."""
    return ReferenceCache(cache_folder() / "reference" / base_key(lm), progress)


def base_key(lm: Any) -> str:
    """32 hex digits of everything the base's log-probs depend on, but for rounding.

    That is every bit of its weights and buffers, their precision, its config, and the code that reads them (the config
    names transformers' version).

    Neither an adapter on the base nor where it was loaded from counts. Reads the weights at the speed of hashing, a
    gigabyte or more per second and core.
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
    """A hash each. Weights in shards are gathered one by one, and hashed by the first worker."""
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
    """16 bytes of the token ids; the prompt's length stands first, so no two ways to split a text are one."""
    return _hash(np.array([len(prompt), *prompt, *response], dtype="<i8").tobytes()).digest()


class ReferenceCache:
    """Values by key, in `folder`."""

    def __init__(self, folder: Path, progress: Progress = SILENT) -> None:
        self.folder, self._progress = folder, progress
        self._segments: dict[str, Segment] = {}
        self._writes = True
        self._reread()

    def find(self, keys: Sequence[bytes]) -> NDArray[np.float64]:
        """The values of `keys`, nan where there is none.

        Where two writers computed the same pair, and rounded it differently, the smaller value counts, whatever the
        order of the segments.
        """
        wanted = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
        found = np.full(len(keys), np.nan)
        for first, second, values in filter(np.size, self._segments.values()):
            at = np.searchsorted(first, wanted[:, 0]).clip(max=len(first) - 1)
            same = (first[at] == wanted[:, 0]) & (second[at] == wanted[:, 1])
            found = np.fmin(found, np.where(same, values[at].view("<f8"), np.nan))
        return found

    def add(self, values: Mapping[bytes, float]) -> None:
        """Write `values` as a segment. If that fails it is said once, and no more is written."""
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
        self._progress.note(f"note: nothing more goes into the reference cache: {why}")

    def _write(self, rows: Segment) -> str:
        """Write the distinct entries of `rows`, sorted; returns the segment's name."""
        rows = rows[:, np.lexsort((rows[2].view("<f8"), rows[1], rows[0]))]
        first = np.append(True, (rows[:2, 1:] != rows[:2, :-1]).any(0))
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(rows[:, first]))
        name = f"{_hash(file.getbuffer()).hexdigest()}.npy"
        with atomic_file(self.folder / name) as beside:
            beside.write_bytes(file.getbuffer())
        self._segments.pop(name, None)  # it may have been there, damaged
        return name

    def _merge(self) -> None:
        """Put many small segments into one.

        Others may merge the same at the same time: all of it stands twice then, and not less than once, for what is
        merged goes only when what it was merged into is there.
        """
        small = {name: rows for name, rows in self._segments.items() if rows.shape[1] < SMALL}
        if len(small) > MANY:
            merged = self._write(np.concatenate(list(small.values()), axis=1))
            self._remove(small.keys() - {merged})
            self._reread()

    def _reread(self) -> None:
        """Have open what lies in the folder now; listed again where another process merges meanwhile."""
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

    def _open(self, name: str) -> Segment:
        """A segment mapped into memory; one that is not what was written is removed, and as good as empty."""
        path = self.folder / name
        with path.open("rb") as file:
            if hashlib.file_digest(file, _hash).hexdigest() == path.stem:
                return np.asarray(np.load(path, mmap_mode="r"))
        self._progress.note(f"note: {path} is damaged: what it held will be computed again")
        self._remove([name])
        return np.empty((3, 0), dtype="<u8")

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):  # what stays does no harm
                (self.folder / name).unlink()
