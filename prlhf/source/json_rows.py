"""Rows of JSON: an object a line, one list, or one object that holds the list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.source.raw import Raw, RawRows
from prlhf.source.streams import MARK, byte_lines, read_all, readable

HOLDERS = ("data", "rows", "examples", "instances", "items", "train")  # keys under which a JSON object keeps its rows


def json_rows(path: Path, lines: bool) -> RawRows:
    """The rows of a JSON file. `lines`: its name says that every line is a row, which its content may deny."""
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
    """(value, "") or (None, why not). The bare ValueError is for numbers of thousands of digits."""
    try:
        return json.loads(data.decode("utf-8").lstrip(MARK)), ""
    except UnicodeDecodeError as error:
        return None, f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""  # a JSONL line is always its own line 1
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
    """The rows of a file that is one JSON value, or several, each over many lines."""
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
    raise PrlhfError(f"{path}: {problem}", "fix the file: it should be one JSON list, or one object a line")


def _values(content: str) -> list[Any]:
    """JSON values one after the other; [] where anything else stands between them."""
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
    """The rows of an object of columns, each a list or, as pandas writes, an object by row; [] for any other object."""
    columns = [list(column.values()) if isinstance(column, dict) else column for column in value.values()]
    alike = len(columns) > 1 and len({type(column) for column in value.values()}) == 1
    if not alike or not isinstance(columns[0], list) or len({len(column) for column in columns}) > 1:
        return []
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_rows(value: Any) -> bool:
    """Whether a value is a list of objects. A list of messages is, too: as a file's only line it is one prompt."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
