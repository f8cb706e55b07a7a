"""Rows of CSV and TSV files, whose first row names the columns."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from prlhf.errors import PrlhfError
from prlhf.source.raw import Cells, Raw, RawRows
from prlhf.source.streams import MARK, open_text, readable

DELIMITERS = (",", ";", "\t", "|")  # a spreadsheet writes semicolons where the comma is the decimal point


def csv_rows(path: Path, delimiter: str | None) -> RawRows:
    """The rows as `Cells`. `delimiter` None: the one that splits the first line into most columns."""
    csv.field_size_limit(sys.maxsize)
    delimiter = delimiter or _delimiter(path)
    names = _names(path, delimiter)
    with open_text(path) as file:
        total = max(sum(1 for _ in file) - 1, 0)
    return RawRows(total, _rows(path, delimiter, names))


def _delimiter(path: Path) -> str:
    with open_text(path) as file:
        line = file.readline().lstrip(MARK)
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([line], delimiter=one), [])))


def _names(path: Path, delimiter: str) -> list[str]:
    with open_text(path) as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    names = [name.strip().lstrip(MARK).strip() for name in header]
    for name in names:
        if name and names.count(name) > 1:
            raise PrlhfError(f"{path} has two columns '{name}'", "give every column a name of its own")
    return names


def _rows(path: Path, delimiter: str, names: list[str]) -> Iterator[Raw]:
    with readable(path), open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        end = -1
        while True:
            start = max(end, reader.line_num) + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Raw(f"{path}:{start}", None, f"it is not CSV ({error})")
                continue
            if cells is None:
                return
            end = reader.line_num
            if start == 1 or not any(cells):  # the header, or a blank line
                continue
            yield Raw(f"{path}:{start}", Cells(zip(names, cells, strict=False)), _problem(cells, names))


def _problem(cells: list[str], names: list[str]) -> str:
    if len(cells) != len(names):
        return f"it has {len(cells)} cells, and the header has {len(names)}"
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell if character >= "\ud800"):
        return "it is not UTF-8: save the file as UTF-8 (in Excel: 'CSV UTF-8')"
    return ""
