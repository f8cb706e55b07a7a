"""The space of a sweep, `alpha=0.1:0.9`, `lr=1e-5:1e-3:log` or `k=5,10,50` for each key, and the points in it."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from prlhf.config import GenerateConfig, Stage, TrainConfig
from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.parse import yaml_value

Point = dict[str, Any]  # one value for every key of the space

HOW_TO_WRITE = "write it as in --space alpha=0.2,0.5 or --space alpha=0.1:0.9"
STAGE_OF: dict[str, type[Stage]] = {"train": TrainConfig, "generate": GenerateConfig}
PER_TRIAL = {  # keys that the sweep sets itself, and why
    "out": "each trial has a folder of its own",
    "generate.out": "each trial has a folder of its own",
    "generate.dataset": "all trials write for the same prompts",
    "generate.prompts": "all trials write for the same prompts",
    "generate.users": "all trials write for the same users",
    "generate.baseline": "a trial writes with the model it trained",
}
_RANGE = re.compile(r"\s*([^:,\s]+)\s*:\s*([^:,\s]+)\s*(?::\s*([^:,\s]*)\s*)?")


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; `log`: equally many in each factor of ten."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """The number that has `share`, in [0, 1), of the range below it."""
        beyond = self.high + 1 if self.whole else self.high  # a whole number stands for the interval up to the next
        value = self.low * (beyond / self.low) ** share if self.log else self.low + share * (beyond - self.low)
        value = math.floor(value) if self.whole else float(f"{value:.6g}")  # few digits, for tables and recipes
        return min(max(value, self.low), self.high)

    @property
    def ends(self) -> list[float]:
        """Both ends, or one if they are equal."""
        return [self.low] if self.low == self.high else [self.low, self.high]


Axis = list[Any] | Range
Space = dict[str, Axis]  # a key, as in `alpha` or `generate.temperature` -> its values or range, in the given order


def parse_space(texts: list[str]) -> Space:
    """Parse `["alpha=0.1:0.9", "user-tokens=1,10"]`; `train.alpha` is `alpha`.

    Values are YAML, so `lora_targets="q_proj,v_proj",all-linear` has two.
    """
    return space_of(texts_by_key(texts))


def texts_by_key(texts: list[str]) -> dict[str, str]:
    """Split each `--space KEY=VALUES` into its key and its values."""
    given: dict[str, str] = {}
    for text in texts:
        name, separator, listed = text.partition("=")
        if not separator or not name.strip():
            raise PrlhfError(f"'{text}' is not key=value,value", HOW_TO_WRITE)
        key = canonical(name)
        if key in given:
            raise PrlhfError(f"--space names '{key}' twice", f"give all values of {key} in one --space")
        given[key] = listed
    return given


def merged_space(recipe: Any, given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """The space of a recipe with that of the command line over it, key by key: a mapping, or texts of `--space`."""
    if not isinstance(recipe, Mapping):
        raise PrlhfError(f"sweep.space = {recipe!r} is not a mapping", 'write it as alpha: "0.1:0.9", one key per line')
    typed = given if isinstance(given, Mapping) else texts_by_key(list(given))
    return {canonical(key): value for layer in (recipe, typed) for key, value in layer.items()}


def space_of(given: Mapping[str, Any]) -> Space:
    """Parse `sweep.space` of a recipe: its values are lists, or texts as in `--space KEY=TEXT`."""
    if not given:
        raise PrlhfError("the sweep has no --space", HOW_TO_WRITE)
    return {canonical(key): _axis(canonical(key), value) for key, value in given.items()}


def canonical(name: str) -> str:
    """`train.user-tokens` to `user_tokens`; keys of generate keep their stage. Raises PrlhfError for an unknown key."""
    key = name.strip().replace("-", "_").removeprefix("train.")
    stage, _, bare = key.rpartition(".")
    kind = STAGE_OF.get(stage or "train")
    if kind is None or bare not in kind.model_fields:
        known = [*TrainConfig.model_fields, *(f"generate.{field}" for field in GenerateConfig.model_fields)]
        raise PrlhfError(f"unknown key '{key}' in --space", nearest(key, known))
    if key in PER_TRIAL:
        raise PrlhfError(f"'{key}' cannot be swept: {PER_TRIAL[key]}", "leave it out of the space")
    return key


def _field(key: str) -> Any:
    stage, _, bare = key.rpartition(".")
    return STAGE_OF[stage or "train"].model_fields[bare]


def _number_kind(key: str) -> type | None:
    """The type int or float of a key that holds numbers or None; None for other keys."""
    annotation = _field(key).annotation
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind in (int, float)]
    return kinds[0] if kinds else None


def _axis(key: str, value: Any) -> Axis:
    if isinstance(value, list):
        return _choices(key, f"{key}={value}", value)
    if not isinstance(value, str):  # YAML reads 1:20 as the number 80
        raise PrlhfError(
            f"sweep.space.{key} = {value!r} is neither a range nor a list", f'write {key}: "1:20", or [1, 5]'
        )
    match = _RANGE.fullmatch(value)
    if match and all(map(_is_number, match.groups()[:2])):
        return _range(key, *match.groups())
    text = f"{key}={value}"
    if ":" in value and _number_kind(key):
        raise PrlhfError(f"'{text}' is not a range", f"{HOW_TO_WRITE}, or lr=1e-5:1e-3:log; a range stands alone")
    return _choices(key, text, _listed(text, value))


def _range(key: str, low: str, high: str, scale: str | None) -> Range:
    text, kind = f"{key}={low}:{high}" + (f":{scale}" if scale is not None else ""), _number_kind(key)
    if kind is None:
        raise PrlhfError(f"'{text}' is a range, and {key} is not a number", "list its values with commas")
    if scale not in (None, "log"):
        raise PrlhfError(f"'{text}': '{scale}' is not a scale", "write :log for a logarithmic range, or nothing")
    ends = [float(low), float(high)]
    if not all(map(math.isfinite, ends)) or ends[0] > ends[1]:
        raise PrlhfError(f"'{text}' is an empty range", "write the lower end first, as in alpha=0.1:0.9")
    if scale and ends[0] <= 0:
        raise PrlhfError(f"'{text}' is logarithmic and starts at {low}", "start above 0, as in lr=1e-5:1e-3:log")
    if kind is int:
        if any(end != int(end) for end in ends):
            raise PrlhfError(f"'{text}': {key} is a whole number", f"write whole ends, as in {key}=5:50")
        return Range(int(ends[0]), int(ends[1]), bool(scale), whole=True)
    return Range(ends[0], ends[1], bool(scale))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(text: str, listed: str) -> list[Any]:
    try:
        values: list[Any] = yaml_value(f"[{listed}]")
    except ValueError as error:
        raise PrlhfError(
            f"cannot read the values of '{text}': {one_line(error)}",
            f"{HOW_TO_WRITE}; quote what has a comma",
        ) from error
    return [None] if listed.rstrip().endswith(",") else values  # YAML ignores a comma at the end


def _choices(key: str, text: str, values: list[Any]) -> list[Any]:
    # null would silently mean the value of the recipe
    if not values or any(value is None or value == "" for value in values):
        raise PrlhfError(f"'{text}' has an empty value", HOW_TO_WRITE)
    values = [_typed(key, value) for value in values]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise PrlhfError(f"'{text}' has {value!r} twice", "remove one")
    return values


def _typed(key: str, value: Any) -> Any:
    """Convert a value to the type of its key: YAML reads `1e-4` as text. `check` reports a value that is refused."""
    field = _field(key)
    try:
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return value


# ---- points ----


def grid(space: Space) -> list[Point]:
    """All combinations; the last key varies fastest. Raises PrlhfError for a range."""
    for key, axis in space.items():
        if isinstance(axis, Range):
            raise PrlhfError(
                f"the range {key} = {axis.low:g}:{axis.high:g} has no grid",
                f"sample it with --trials N, or list values of {key}",
            )
    return _combinations(space, lambda axis: axis)


def corners(space: Space) -> list[Point]:
    """All combinations of listed values and ends of ranges; if they are accepted, so are the points between them."""
    return _combinations(space, lambda axis: axis.ends if isinstance(axis, Range) else axis)


def _combinations(space: Space, values: Any) -> list[Point]:
    return [dict(zip(space, found, strict=True)) for found in itertools.product(*map(values, space.values()))]


def size(space: Space) -> float:
    """The number of points; infinite if a range is not of whole numbers."""
    return math.prod(_size(axis) for axis in space.values())


def _size(axis: Axis) -> float:
    if isinstance(axis, list):
        return len(axis)
    return axis.high - axis.low + 1 if axis.whole else 1 if axis.low == axis.high else math.inf


def contains(axis: Axis, value: Any) -> bool:
    """Whether `value` is on `axis`."""
    if isinstance(axis, list):
        return value in axis
    return isinstance(value, int if axis.whole else int | float) and axis.low <= value <= axis.high


def draw(space: Space, seed: int, number: int, attempt: int = 0) -> Point:
    """Point `number` of a random search. It does not depend on the points before it."""
    return {key: _draw(axis, random.Random(f"{seed} {number} {attempt} {key}").random()) for key, axis in space.items()}


def _draw(axis: Axis, share: float) -> Any:
    return axis.at(share) if isinstance(axis, Range) else axis[int(share * len(axis))]
