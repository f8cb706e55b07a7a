"""JSON and YAML texts: reading those of others, and writing JSON as its standard has it.

Any fault in a text that is read raises a ValueError that says what is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import yaml

DEEP = 500  # levels of lists and mappings: no file of ours is so deep, and Python's own limit is not much higher
UNFOLDED = 100_000  # values of a YAML document: with aliases, a few lines can unfold to more than any memory holds


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON or not UTF-8, nested too deeply, or holds numbers of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(value, most=None)
    return value


def yaml_value(text: str) -> Any:
    """The value of a YAML text of plain values.

    Raises:
        ValueError: it is not YAML, nested too deeply, its aliases unfold to more than `UNFOLDED` values, or it
            holds half a surrogate pair.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # besides YAMLError what int, float and dates raise, and the KeyError of !!bool
        raise ValueError(str(error) or type(error).__name__) from error
    _check_values(value, UNFOLDED)
    return value


def json_text(value: Any, **options: Any) -> str:
    """`json.dumps`, with null for a number that is not finite, where Python would write NaN or Infinity."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _check_values(value: Any, most: int | None) -> None:
    """Walk through `value` level by level, as it would be written out."""
    level, seen, depth = [value], 0, 0
    while level:
        seen, depth = seen + len(level), depth + 1
        if depth > DEEP:
            raise ValueError("it is nested too deeply")
        if most is not None:
            if seen > most:
                raise ValueError(f"its aliases unfold to more than {most:,} values")
            _check_texts(level)
        level = [inner for one in level for inner in _inside(one)]


def _check_texts(values: Iterable[Any]) -> None:
    try:
        for value in values:
            if isinstance(value, str):
                value.encode()
    except UnicodeEncodeError:  # YAML can say "\\ud800", which no file and no command can hold
        raise ValueError("it holds half a surrogate pair, which is not Unicode text") from None


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list | tuple | set) else ()
