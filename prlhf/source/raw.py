"""A row as its file has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """One row as a file or the hub holds it. `problem` says why it could not even be parsed."""

    location: str  # `path:line`, for rows without lines `path:item 3` or `path:row 3`
    value: Any
    problem: str = ""


@dataclass(frozen=True)
class RawRows:
    """The rows of one split, read as they are asked for; `total` is for the progress bar."""

    total: int
    rows: Iterable[Raw]


class Cells(dict[str, str]):
    """A row of a CSV or TSV file: every value is text, whatever it was before it was written."""
