"""Users' rows in a user model on disk: changed, and added after the last one. All other bytes stay as they are.

The format of safetensors holds tables one after the other behind a header, so the file is copied as a whole: what this
takes grows with the file, at the speed of the disk, and not in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

CHUNK = 2**22  # bytes that are copied at a time


def rewrite_rows(source: Path, target: Path, first: Mapping[str, int], count: int, rows: Mapping[int, Tensor]) -> None:
    """Write to `target` the user model `source` for `count` users, in which some have other `rows`.

    Args:
        source: a safetensors file that was compared with its checksum.
        target: the file to write.
        first: for each table, in the order of a row's parts, the user index of its first row.
        count: m, the last user index; rows that are new and not among `rows` are 0.
        rows: rows over all tables [d] in fp32, by user index.
    """
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        begin = old.tell()
        about = header.pop("__metadata__", None)
        places, after = _layout(header, first, count)
        text = json.dumps(({"__metadata__": about} if about else {}) | after, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        start = new.tell()
        for name in places:
            low, high = header[name]["data_offsets"]
            old.seek(begin + low)
            _copy(old, new, high - low)
            new.truncate(start + after[name]["data_offsets"][1])  # filled up with zeros
            new.seek(0, 2)
        _put(new, start, after, first, rows)


def _layout(header: dict[str, Any], first: Mapping[str, int], count: int) -> tuple[list[str], dict[str, Any]]:
    """The names of the tensors as they follow one another, and the new header, with tables for `count` users."""
    places = sorted(header, key=lambda name: header[name]["data_offsets"])
    after: dict[str, Any] = {}
    end = 0
    for name in places:
        low, high = header[name]["data_offsets"]
        shape, size = list(header[name]["shape"]), high - low
        if name in first:
            shape[0] = count + 1 - first[name]
            size = 4 * shape[0] * shape[1]
        after[name] = {"dtype": header[name]["dtype"], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return places, after


def _put(
    file: BinaryIO, start: int, header: dict[str, Any], first: Mapping[str, int], rows: Mapping[int, Tensor]
) -> None:
    widths = [header[name]["shape"][1] for name in first]
    for user_index, row in sorted(rows.items()):
        for name, width, part in zip(first, widths, row.split(widths), strict=True):
            file.seek(start + header[name]["data_offsets"][0] + 4 * width * (user_index - first[name]))
            file.write(part.contiguous().numpy().astype("<f4").tobytes())


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        part = source.read(min(size, CHUNK))
        target.write(part)
        size -= len(part)
