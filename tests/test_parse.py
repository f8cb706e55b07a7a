"""Any fault of a JSON or YAML text is one type of error, and no text takes unlimited time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prlhf.parse import json_value, yaml_value

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("read", [json_value, yaml_value])
def test_values(read: Callable[[str], Any]) -> None:
    assert read('{"a": [1, 0.5, null, true, "é"]}') == {"a": [1, 0.5, None, True, "é"]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        (b"\xff", "utf-8"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "nested too deeply"),  # Python reads it, and fails later
        ('{"a":' * 600 + "1" + "}" * 600, "nested too deeply"),
        ("9" * 5000, "4300 digits"),
    ],
)
def test_not_json(text: str | bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        json_value(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [1", "expected ',' or ']'"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 600 + "]" * 600, "nested too deeply"),
        ("9" * 5000, "4300 digits"),
        ("2026-13-45", "month must be in 1..12"),
        ("!!timestamp x", "groupdict"),
        ("!!bool x", "x"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {b: *a}", "nested too deeply"),
        (r'a: "\ud800"', "half a surrogate pair"),
        (BOMB, "unfold to more than 100,000 values"),
        ("\x00", "special characters"),
    ],
)
def test_not_plain_yaml(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        yaml_value(text)


def test_json_of_ours_may_quote_what_was_wrong_with_a_row() -> None:
    assert json_value(r'{"malformed": ["\ud800"]}') == {"malformed": ["\ud800"]}


def test_an_alias_is_not_refused() -> None:
    assert yaml_value("a: &a [1, 2]\nb: *a\nc: *a") == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}
