"""pydantic's errors as this project's: the value and why, and what to do."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from prlhf.errors import nearest


def explain(model: type[BaseModel], error: ValidationError) -> tuple[str, str]:
    """A pydantic error of `model` as (message, hint)."""
    first = error.errors()[0]
    key, value, problem = ".".join(map(str, first["loc"])), first["input"], first["type"]
    if problem in ("extra_forbidden", "invalid_key"):
        return unknown_key(model, key)
    if problem == "literal_error":
        options = [o.strip(" '") for o in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{key} = {value!r} is not known", nearest(str(value), options)
    if not first["loc"]:  # a text that is not JSON, or JSON that is not an object
        return f"the settings cannot be read: {first['msg']}", "they may be damaged"
    wanted = _wanted(model, str(first["loc"][0]))
    if problem == "missing":
        return f"{key} is missing", f"set {key} to {wanted}"
    why = "out of range" if problem.startswith(("greater_than", "less_than")) else "of the wrong kind"
    return f"{key} = {value!r} is refused: it is {why}", f"set {key} to {wanted}"


def unknown_key(model: type[BaseModel], key: str) -> tuple[str, str]:
    """(message, hint) for a key that `model` does not have."""
    name = model.__name__.removesuffix("Config").lower()
    return f"unknown key '{key}' for {name}", nearest(key, model.model_fields)


def _wanted(model: type[BaseModel], key: str) -> str:
    """What a key takes, as it is declared: `a number that is at least 0 and at most 1`."""
    field = model.model_fields[key]
    kind = next((words for name, words in _KINDS.items() if name in str(field.annotation)), "a text")
    limits = ((getattr(rule, name, None), words) for rule in field.metadata for name, words in _LIMITS.items())
    bounds = [f"{words} {limit}" for limit, words in limits if limit is not None]
    return " that is ".join(filter(None, [kind, " and ".join(bounds)]))


_KINDS = {"dict": "a mapping of names", "int": "a whole number", "float": "a number", "bool": "true or false"}
_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
