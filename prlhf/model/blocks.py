"""SHA-256 of each MiB of a safetensors file.

A few rows of a large file can be read, and what is read is checked, without reading the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from prlhf.errors import PrlhfError

BLOCK = 2**20  # bytes


def changed(path: Path) -> PrlhfError:
    """The error of a file whose checksum differs."""
    return PrlhfError(
        f"{path} was changed or cut short after it was saved (SHA-256 differs)", "train again, or use a copy"
    )


def block_sums(path: Path) -> Iterator[str]:
    """The SHA-256 of each block of `path`, the last of which may be short."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield hashlib.sha256(block).hexdigest()


class CheckedFile:
    """Reads parts of `path`, whose blocks have the SHA-256 `sums`. One block is held in memory."""

    def __init__(self, path: Path, file: BinaryIO, sums: Sequence[str]) -> None:
        self.path, self._file, self._sums = path, file, sums
        self._number, self._block = -1, b""

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`; the blocks they are in are compared with their checksums."""
        numbers = range(start // BLOCK, math.ceil(end / BLOCK))
        whole = b"".join(map(self._checked, numbers))
        return whole[start - numbers.start * BLOCK :][: end - start]

    def _checked(self, number: int) -> bytes:
        if number != self._number:
            self._file.seek(number * BLOCK)
            self._number, self._block = number, self._file.read(BLOCK)
            if number >= len(self._sums) or hashlib.sha256(self._block).hexdigest() != self._sums[number]:
                raise changed(self.path)
        return self._block


@dataclass(frozen=True)
class Some:
    """Of a matrix of `count` rows those in `rows`."""

    rows: Sequence[int]
    count: int


def read_rows(path: Path, sums: Sequence[str], some: Mapping[str, Some]) -> dict[str, Tensor]:
    """The fp32 tensors of a safetensors file, those named in `some` in part. No block is read but for what it holds.

    Raises PrlhfError where a block read is not what was saved, or a matrix has another number of rows.
    """
    with path.open("rb") as file:
        checked = CheckedFile(path, file, sums)
        begin = 8 + int.from_bytes(checked.read(0, 8), "little")  # the format: length of the header, header, numbers
        try:
            header: dict[str, Any] = json.loads(checked.read(8, begin))
        except ValueError as error:
            raise changed(path) from error
        header.pop("__metadata__", None)
        ends = [begin + about["data_offsets"][1] for about in header.values()]
        if path.stat().st_size != max(ends):
            raise changed(path)
        found = {}
        for name, about in header.items():
            start, shape, wanted = begin + about["data_offsets"][0], about["shape"], some.get(name)
            if wanted is None:
                found[name] = _fp32([checked.read(start, begin + about["data_offsets"][1])], shape)
            elif shape[0] != wanted.count:
                raise PrlhfError(
                    f"{path} is damaged: '{name}' has {shape[0]} rows, not {wanted.count}",
                    "train again, or use a copy",
                )
            else:
                size = 4 * shape[1]
                parts = [checked.read(start + i * size, start + (i + 1) * size) for i in wanted.rows]
                found[name] = _fp32(parts, [len(parts), shape[1]])
    return found


def _fp32(parts: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    raw = bytearray().join(parts)
    return torch.frombuffer(raw, dtype=torch.float32).reshape(shape) if raw else torch.empty(shape)
