"""Checks of raw values: each returns the value with its type, or raises Malformed with what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prlhf.errors import nearest


class Malformed(Exception):
    """A row with a wrong value. The text says why; `hint` says what to do."""

    def __init__(self, why: str, hint: str = "fix the row") -> None:
        super().__init__(why)
        self.hint = hint


def mapping(value: Any, name: str = "the row") -> Mapping[str, Any]:
    """Return `value` as a mapping.

    Raises:
        Malformed: it is not a mapping.
    """
    if not isinstance(value, Mapping):
        raise Malformed(f"{name} is {kind(value)}, not a mapping")
    return value


def column(row: Mapping[str, Any], name: str, hint: str = "fix the row") -> Any:
    """Return the value of the column `name`, which may be null.

    Raises:
        Malformed: there is no such column.
    """
    if name in row:
        return row[name]
    raise Malformed(f"column '{name}' is missing ({nearest(name, [str(key) for key in row])})", hint)


def text(value: Any, name: str) -> str:
    """Return `value` as text that is not blank.

    Raises:
        Malformed: it is not text, or blank.
    """
    if not any_text(value, name).strip():
        raise Malformed(f"'{name}' is empty")
    return str(value)


def any_text(value: Any, name: str) -> str:
    """Return `value` as text, which may be empty.

    Raises:
        Malformed: it is not text.
    """
    if not isinstance(value, str):
        raise Malformed(f"'{name}' is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write "\ud800", which cannot be encoded
        raise Malformed(f"'{name}' holds half a surrogate pair, which is not Unicode text") from error
    return value


def kind(value: Any) -> str:
    """Return the type of a value in the words of JSON, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"
