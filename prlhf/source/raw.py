"""Raw rows, as they are before anyone interprets them, and reading them from CSV, TSV, JSON and JSONL."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.source.streams import MARK, byte_lines, open_text, read_all, readable


@dataclass(frozen=True)
class Raw:
    """One row as it is in a file or on the hub. `problem`: why it could not be parsed, if so."""

    location: str  # `path:line`, or `path:item 3` or `path:row 3` if rows are not lines
    value: Any
    problem: str = ""


@dataclass(frozen=True)
class RawRows:
    """The rows of one split, read during iteration; `total` is for the progress bar."""

    total: int
    rows: Iterable[Raw]


class Cells(dict[str, str]):
    """A row of a CSV or TSV file, in which every value is text."""


# ---- CSV and TSV ----

DELIMITERS = (",", ";", "\t", "|")  # a spreadsheet uses semicolons if the comma is the decimal separator
_STATED = re.compile(rf'"?sep=([{"".join(DELIMITERS)}])"?', re.IGNORECASE)  # a first line for Excel, before the header


def csv_rows(path: Path, delimiter: str | None) -> RawRows:
    """Open a CSV file whose first row names the columns; rows are `Cells`.

    `delimiter` None: the one of a first line `sep=;`, as Excel has it, or the one that gives the most columns.

    Raises:
        PrlhfError: two columns have the same name.
    """
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as file:
        first = file.readline().lstrip(MARK)
    stated = _STATED.fullmatch(first.rstrip("\r\n"))
    delimiter = stated[1] if stated else delimiter or _delimiter(first)
    header = 2 if stated else 1
    names = _names(path, delimiter, header)
    with open_text(path) as file:
        total = max(sum(1 for _ in file) - header, 0)
    return RawRows(total, _rows(path, delimiter, names, header))


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([line], delimiter=one), [])))


def _names(path: Path, delimiter: str, line: int) -> list[str]:
    """The names of the columns, from the header in that line of the file."""
    with open_text(path) as file:
        header = next(csv.reader(islice(file, line - 1, None), delimiter=delimiter), [])
    names = [name.strip().lstrip(MARK).strip() for name in header]
    for name in names:
        if name and names.count(name) > 1:
            raise PrlhfError(f"{path} has two columns '{name}'", "give every column a name of its own")
    return names


def _rows(path: Path, delimiter: str, names: list[str], header: int) -> Iterator[Raw]:
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
            if start <= header or not any(cells):  # a line of the head, or a blank line
                continue
            yield Raw(f"{path}:{start}", Cells(zip(names, cells, strict=False)), _problem(cells, names))


def _problem(cells: list[str], names: list[str]) -> str:
    if len(cells) != len(names):
        return f"it has {len(cells)} cells, and the header has {len(names)}"
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell if character >= "\ud800"):
        return "it is not UTF-8: save the file as UTF-8 (in Excel: 'CSV UTF-8')"
    return ""


# ---- JSON: one object per line, one list, or one object that holds the list ----

HOLDERS = ("data", "rows", "examples", "instances", "items", "train")  # keys of a JSON object that may hold its rows


def json_rows(path: Path, lines: bool) -> RawRows:
    """Open a JSON file. `lines`: its name says that every line is a row; its content may show otherwise.

    Raises:
        PrlhfError: the file is neither JSON lines nor JSON.
    """
    first = _first_line(path)
    listed = first[:1] == b"["
    value, problem = parse(first)
    by_line = (lines and not listed) or first[:1] not in (b"[", b"{")
    if by_line or (not problem and isinstance(value, dict) and not _holder(value) and not _by_columns(value)):
        return RawRows(sum(1 for _ in byte_lines(path)), _lines(path))
    if listed and lines and not problem and not _is_rows(value):
        return RawRows(sum(1 for _ in byte_lines(path)), _lines(path))
    found = _whole(path)
    return RawRows(len(found), _items(path, found))


def parse(data: bytes) -> tuple[Any, str]:
    """Return (value, "") or (None, the problem). A number of thousands of digits raises a plain ValueError."""
    try:
        return json.loads(data.decode("utf-8").lstrip(MARK)), ""
    except UnicodeDecodeError as error:
        return None, f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""  # a line of JSONL is always line 1
        return None, f"it is not JSON ({error.msg}, {line}column {error.colno})"
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({error})"


def _first_line(path: Path) -> bytes:
    for line in byte_lines(path):
        if found := line.strip().removeprefix(b"\xef\xbb\xbf").lstrip():
            return found
    return b""


def _lines(path: Path) -> Iterator[Raw]:
    with readable(path):
        for number, line in enumerate(byte_lines(path), start=1):
            if line.removeprefix(b"\xef\xbb\xbf").strip():
                value, problem = parse(line.rstrip())
                yield Raw(f"{path}:{number}", value, problem)


def _items(path: Path, items: Iterable[Any]) -> Iterator[Raw]:
    return (Raw(f"{path}:item {number}", item) for number, item in enumerate(items, start=1))


def _whole(path: Path) -> list[Any]:
    """The rows of a file with one JSON value, or with several that each span many lines."""
    content = read_all(path)
    value, problem = parse(content)
    if problem and "Extra data" in problem:
        values = _values(content.decode("utf-8"))
        problem = "" if values else problem
        return _flat(values) if values else _refuse(path, problem)
    if problem:
        return _refuse(path, problem)
    return _flat([value])


def _refuse(path: Path, problem: str) -> list[Any]:
    raise PrlhfError(f"{path}: {problem}", "fix the file: it should be one JSON list, or one object per line")


def _values(content: str) -> list[Any]:
    """Parse consecutive JSON values; returns [] if there is anything else between them."""
    decoder, found, at = json.JSONDecoder(), list[Any](), 0
    try:
        while rest := content[at:].lstrip():
            value, length = decoder.raw_decode(rest)
            found.append(value)
            at = len(content) - len(rest) + length
    except (ValueError, RecursionError):
        return []
    return found


def _flat(values: list[Any]) -> list[Any]:
    if len(values) != 1:
        return values
    value = values[0]
    if isinstance(value, dict):
        holder = _holder(value)
        return list(value[holder]) if holder else _by_columns(value) or [value]
    return value if isinstance(value, list) else [value]


def _holder(value: dict[str, Any]) -> str:
    return next((key for key in HOLDERS if _is_rows(value.get(key))), "")


def _by_columns(value: dict[str, Any]) -> list[Any]:
    """The rows of an object of columns, each a list or an object by row (as pandas writes it); [] for other objects."""
    columns = [list(column.values()) if isinstance(column, dict) else column for column in value.values()]
    alike = len(columns) > 1 and len({type(column) for column in value.values()}) == 1
    if not alike or not isinstance(columns[0], list) or len({len(column) for column in columns}) > 1:
        return []
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of objects. So is a list of messages, which as a file's only line is one prompt."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
