"""What a sweep goes through: `alpha=0.2,0.5` per setting, and the grid of all combinations."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import yaml

from prlhf.config import TrainConfig, parse_override, resolve
from prlhf.errors import PrlhfError, nearest

Space = dict[str, list[Any]]  # a key of TrainConfig -> its values, both in the order given
Point = dict[str, Any]  # one value for every key of the space

HOW_TO_WRITE = "write it as in --space alpha=0.2,0.5"


def parse_space(texts: list[str]) -> Space:
    """`["alpha=0.2,0.5", "user-tokens=1,10"]` to keys and values; `train.alpha` is `alpha`.

    Values are YAML, so `lora_targets="q_proj,v_proj",all-linear` has two.
    """
    if not texts:
        raise PrlhfError("the sweep has no --space to go through", HOW_TO_WRITE)
    space: Space = {}
    for text in texts:
        key, values = _parse(text)
        if key in space:
            raise PrlhfError(f"--space names '{key}' twice", f"give all values of {key} in one --space")
        space[key] = values
    return space


def grid(space: Space) -> list[Point]:
    """All combinations; the last key varies fastest."""
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def configs(base: Mapping[str, Any], points: list[Point]) -> list[TrainConfig]:
    """Every point on top of `base`, checked; so a sweep that would fail at its last trial fails before its first."""
    checked = [resolve(TrainConfig, base, point) for point in points]
    for number, config in enumerate(checked):
        if config in checked[:number]:  # `1e-4,0.0001`: told apart as YAML, but one setting
            first = points[checked.index(config)]
            raise PrlhfError(f"{points[number]} and {first} are the same trial", "remove one of the values")
    return checked


def _parse(text: str) -> tuple[str, list[Any]]:
    name, separator, listed = text.partition("=")
    if not separator or not name.strip():
        raise PrlhfError(f"'{text}' is no key=value,value", HOW_TO_WRITE)
    key, _ = parse_override(f"{name}=", "train")
    if key not in TrainConfig.model_fields:
        raise PrlhfError(f"unknown key '{key}' in --space", nearest(key, TrainConfig.model_fields))
    if key == "out":
        raise PrlhfError("'out' cannot be swept: every trial has a folder of its own", "choose the sweep's with --out")
    return key, _values(text, listed)


def _values(text: str, listed: str) -> list[Any]:
    try:
        values: list[Any] = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError as error:
        raise PrlhfError(f"cannot read the values of '{text}'", f"{HOW_TO_WRITE}; quote what has a comma") from error
    # YAML forgives a comma at the end; null would silently mean the base's value.
    if not values or listed.rstrip().endswith(",") or any(value is None or value == "" for value in values):
        raise PrlhfError(f"'{text}' has an empty value", HOW_TO_WRITE)
    for number, value in enumerate(values):
        if value in values[:number]:
            raise PrlhfError(f"'{text}' has {value!r} twice", "remove one")
    return values
