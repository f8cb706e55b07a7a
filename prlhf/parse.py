"""JSON and YAML: read texts from other programs, and write JSON that follows its standard.

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
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON or not UTF-8, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_values(value, most=None)
    return value


def yaml_value(text: str) -> Any:
    """Return the value of a YAML text of plain values.

    Raises:
        ValueError: the text is not YAML, is nested too deeply, holds half a surrogate pair, or has aliases that unfold
            to more than `UNFOLDED` values.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # YAMLError, the errors of int, float and dates, and the KeyError of !!bool
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
    """Check the depth, the size and the texts of `value`, level by level, with every alias counted each time."""
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
    except UnicodeEncodeError:  # YAML can write "\\ud800", which cannot be encoded in a file or a command
        raise ValueError("it holds half a surrogate pair, which is not Unicode text") from None


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list | tuple | set) else ()
