"""One comparison on its way from a raw file to the prepared data set, and the checks every raw value passes.

A check that fails raises `Malformed` with what is wrong; where the row stands is the reader's knowledge
(`intake.py`), as is what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prlhf.dataset import Text
from prlhf.errors import nearest


@dataclass(frozen=True)
class Row:
    """A well-formed comparison by one user, not yet indexed."""

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    user_id: str
    user_text: str = ""


@dataclass(frozen=True)
class Loaded:
    """What an adapter hands to `prepare`. `order`: the training users, in the order they are indexed."""

    train: list[Row]
    eval: list[Row]
    order: list[str]
    source: str
    options: dict[str, Any]  # the settings this adapter heeds
    counts: dict[str, Any]  # `Drops.report()`: rows read, and what each filter took
    notes: dict[str, Any] = field(default_factory=dict)  # further keys of the manifest
    warnings: list[str] = field(default_factory=list)
    preferences: dict[str, str] = field(default_factory=dict)  # user id -> true preference in words, where known
    prompts: list[Text] = field(default_factory=list)  # of the data set's own, to generate from
    judging: list[dict[str, Any]] = field(default_factory=list)  # (prompt, user) pairs to judge, with material


class Malformed(Exception):
    """What is wrong with a row, and what to do about it."""

    def __init__(self, why: str, hint: str = "fix the row") -> None:
        super().__init__(why)
        self.hint = hint


class Dropped(Exception):
    """A well-formed row that a filter takes out; the text is the filter's name."""


def mapping(value: Any, name: str = "the row") -> Mapping[str, Any]:
    """`value` if it is a mapping; raises Malformed if it is not."""
    if not isinstance(value, Mapping):
        raise Malformed(f"{name} is {kind(value)}, not a mapping")
    return value


def column(row: Mapping[str, Any], name: str, hint: str = "fix the row") -> Any:
    """The value under `name`, which may be null but must be there."""
    if name in row:
        return row[name]
    raise Malformed(f"column '{name}' is missing ({nearest(name, [str(key) for key in row])})", hint)


def text(value: Any, name: str) -> str:
    """A string with at least one character that is no whitespace; returned as it is."""
    if not any_text(value, name).strip():
        raise Malformed(f"'{name}' is empty")
    return str(value)


def any_text(value: Any, name: str) -> str:
    """A string, empty or not."""
    if not isinstance(value, str):
        raise Malformed(f"'{name}' is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can say "\ud800", which no file can hold
        raise Malformed(f"'{name}' holds half a surrogate pair, which is no Unicode text") from error
    return value


def kind(value: Any) -> str:
    """A value's type in words a reader of JSON knows."""
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
