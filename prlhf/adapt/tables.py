"""Rows of a user model on disk, put in place of others. All other bytes stay as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def rewrite_row(source: Path, target: Path, first: Mapping[str, int], user_index: int, row: Tensor) -> None:
    """Write to `target` the user model `source`, in which a user has another row.

    Args:
        source: a safetensors file that was compared with its checksum.
        target: the file to write.
        first: for each table, in the order of a row's parts, the user index of its first row.
        user_index: the user's.
        row: the row over all tables [d] in fp32.
    """
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")  # its length, header, numbers
        header = json.loads(file.read(start - 8))
        widths = [header[name]["shape"][1] for name in first]
        for name, width, part in zip(first, widths, row.split(widths), strict=True):
            file.seek(start + header[name]["data_offsets"][0] + 4 * width * (user_index - first[name]))
            file.write(part.contiguous().numpy().astype("<f4").tobytes())
