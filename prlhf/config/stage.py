"""What the settings of all stages share, and what is said where a value is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)  # fmt: skip
from typing_extensions import override

from prlhf.config.keys import Key, Needs, refusal, unused
from prlhf.errors import PrlhfError, nearest
from prlhf.files import at_home

SAVED = "saved"  # context of a validation: prlhf wrote the values, so keys that are not used may be there


class Stage(BaseModel):
    """The settings of a stage. Whatever is wrong with them is a PrlhfError."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    declared: ClassVar[Mapping[str, Key]] = {}  # what each key's declaration says
    refuses_unused: ClassVar[bool] = True  # else whoever reads the settings refuses what is not used

    @classmethod
    @override
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Collect the declarations of the keys."""
        fields = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        cls.declared = {name: about if isinstance(about, Key) else Key() for name, about in fields.items()}

    @model_validator(mode="wrap")
    @classmethod
    def refuse(cls, values: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Turn pydantic's errors into ours, and refuse what is given and not used."""
        try:
            config = build(_at_home(values))
        except ValidationError as error:
            raise PrlhfError(*explain(cls, error)) from error
        if cls.refuses_unused and values is not config and info.context != SAVED:
            given = config.given()
            for name, need in unused(cls.declared, config, given).items():
                raise PrlhfError(*refusal(name, need, config, given[name]))
        return config

    @field_validator("*")
    @classmethod
    def name_an_extension(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse names that no extension has."""
        names = cls.declared[str(info.field_name)].named
        if names is not None and value not in names:
            raise PrlhfError(f"{info.field_name} = {value!r} is not known", nearest(value, names))
        return value

    @classmethod
    def keys_under(cls, need: Needs) -> frozenset[str]:
        """The keys that are used only where `need` holds."""
        return frozenset(name for name, about in cls.declared.items() if need in about.used)

    def given(self) -> dict[str, Any]:
        """What differs from its default."""
        values = {name: (getattr(self, name), field.default) for name, field in type(self).model_fields.items()}
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def saved(cls, values: Any) -> Self:
        """Read settings that were saved, without those that are not used, which earlier versions kept."""
        return cls.model_validate(values, context=SAVED).without_unused()

    def without_unused(self) -> Self:
        """The same with the defaults of all keys that are not used, also of those that only such keys make use of."""
        names = unused(self.declared, self, self.given())
        same = self.model_copy(update={name: type(self).model_fields[name].default for name in names})
        return same.without_unused() if names else same


def _at_home(values: Any) -> Any:
    """Fill in the home folder wherever a path begins with `~/` or `$HOME/`."""
    if not isinstance(values, Mapping):
        return values
    paths = {name: at_home(str(value)) for name, value in values.items() if isinstance(value, str | Path)}
    return {**values, **{name: path for name, path in paths.items() if path != str(values[name])}}


# ---- pydantic's errors as ours: the value and why, and what to do ----


def explain(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """A pydantic error of `model` as (message, hint)."""
    first = error.errors()[0]
    name, value, problem = ".".join(map(str, first["loc"])), first["input"], first["type"]
    if problem in ("extra_forbidden", "invalid_key"):
        return unknown_key(model, name)
    if problem == "literal_error":
        options = [option.strip(" '") for option in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{name} = {value!r} is not known", nearest(str(value), options)
    if not first["loc"]:  # a text that is not JSON, or JSON that is not an object
        return f"the settings cannot be read: {first['msg']}", "they may be damaged"
    wanted = f"set {name} to {kind_wanted(model, str(first['loc'][0]))}"
    if problem == "missing":
        return f"{name} is missing", wanted
    why = "out of range" if problem.startswith(("greater_than", "less_than")) else "of the wrong kind"
    return f"{name} = {value!r} is refused: it is {why}", wanted


def unknown_key(model: type[BaseModel], name: str) -> tuple[str, str]:
    """(message, hint) for a key that `model` does not have."""
    stage = model.__name__.removesuffix("Config").lower()
    return f"unknown key '{name}' for {stage}", nearest(name, model.model_fields)


def kind_wanted(model: type[BaseModel], name: str) -> str:
    """What a key takes, as it is declared: `a number that is at least 0 and at most 1`."""
    kind = next((words for part, words in _KINDS.items() if part in str(model.model_fields[name].annotation)), "a text")
    return " that is ".join(filter(None, [kind, bounds_of(model, name)]))


def bounds_of(model: type[BaseModel], name: str) -> str:
    """The bounds of a key: `at least 0 and at most 1`; nothing where there are none."""
    rules = model.model_fields[name].metadata
    limits = ((getattr(rule, part, None), words) for rule in rules for part, words in _LIMITS.items())
    return " and ".join(f"{words} {limit}" for limit, words in limits if limit is not None)


_KINDS = {"dict": "a mapping of names", "int": "a whole number", "float": "a number", "bool": "true or false"}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
