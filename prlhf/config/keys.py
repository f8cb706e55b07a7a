"""How a key is declared: its default and bounds, what it means, its option on the command line, and when it is used.

    k: int = key(10, "Number of clusters K.", used=[CLUSTERS], ge=1)

Everything else is made from these declarations: options, `--help`, the tables of the documentation, the JSON schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from prlhf.extensions import Registry


@dataclass(frozen=True)
class Needs:
    """A condition on a config that depends on its `key`. `words`: the values of that key for which it holds."""

    key: str
    holds: Callable[[Any], bool]
    said: str | Callable[[], str]  # a function where it takes an import to know

    @property
    def words(self) -> str:
        """The values of the key for which the condition holds."""
        return self.said if isinstance(self.said, str) else self.said()


@dataclass(frozen=True)
class Key:
    """What the declaration of a key says besides type, default, bounds and meaning, which pydantic keeps."""

    used: tuple[Needs, ...] = ()  # the key is used if all of these hold
    idle: tuple[Any, ...] = ()  # values that ask for nothing: accepted where the key is not used
    panel: str | None = None  # heading of this key and those that follow, up to the next heading
    unset: str | None = None  # what None means, in words
    flag: str | None = None  # the option, if it is not --the-key; for one of two values: --first/--second
    form: str = "KEY=VALUE"  # how an entry of a mapping is written on the command line
    example: str = ""  # such an entry
    texts: bool = False  # its entries are kept as they were typed, for whoever reads the key
    named: Registry[Any] | None = None  # its values are the names of these extensions
    commands: tuple[str, ...] = ()  # the commands that have the option; none: all that have the stage

    def unmet(self, config: Any) -> Needs | None:
        """Return the first condition that does not hold under `config`; None where all hold."""
        return next((need for need in self.used if not need.holds(config)), None)

    def __call__(self, schema: dict[str, Any]) -> None:
        """Say in the JSON schema what None means, when the key is used, and which extensions there are."""
        words = [schema.get("description", ""), f"Default: {self.unset}." if self.unset else "", used_when(self)]
        schema["description"] = " ".join(filter(None, words))
        schema |= {} if self.named is None else {"enum": list(self.named)}


def key(
    default: Any,
    meaning: str,
    *,
    used: Sequence[Needs] = (),
    idle: Sequence[Any] = (),
    panel: str | None = None,
    unset: str | None = None,
    flag: str | None = None,
    form: str = "KEY=VALUE",
    example: str = "",
    texts: bool = False,
    named: Registry[Any] | None = None,
    commands: Sequence[str] = (),
    **bounds: Any,
) -> Any:
    """Declare a key; `...` as the default makes it required. `bounds`: ge, gt, le and lt, as in pydantic.Field."""
    about = Key(tuple(used), tuple(idle), panel, unset, flag, form, example, texts, named, tuple(commands))
    return Field(default, description=meaning, json_schema_extra=about, **bounds)


def used_when(about: Key) -> str:
    """The conditions of a key as a sentence; nothing where there are none."""
    if not about.used:
        return ""
    return f"Used with {' and '.join(f'{need.key} = {need.words}' for need in about.used)}."


# ---- conditions ----


def one_of(name: str, *values: str) -> Needs:
    """The condition that the key `name` has one of `values`."""
    return Needs(name, lambda config: getattr(config, name) in values, any_of(values))


def says(name: str, registry: Registry[Any], fact: Callable[[Any], bool]) -> Needs:
    """The condition that the extension named by the key `name` has a `fact`.

    Only asking it imports the extension, for a key that is given a value: making settings does not.
    """

    def words() -> str:
        return any_of([one for one in registry.ours if fact(registry[one])])

    return Needs(name, lambda config: fact(registry[getattr(config, name)]), words)


def reads(name: str, registry: Registry[Any], key: str) -> Needs:
    """The condition that the extension named by the key `name` has `key` among those that it uses."""
    return says(name, registry, lambda extension: key in extension.uses)


def above_zero(name: str) -> Needs:
    """The condition that the number `name` is positive."""
    return Needs(name, lambda config: getattr(config, name) > 0, "more than 0")


def turned_on(name: str) -> Needs:
    """The condition that the switch `name` is on."""
    return Needs(name, lambda config: bool(getattr(config, name)), "true")


def any_of(values: Sequence[str]) -> str:
    """Values as a condition lists them: `a or b`, `one of a, b, c`."""
    return " or ".join(values) if len(values) < 3 else f"one of {', '.join(values)}"


# ---- what is given and not used ----


def unused(keys: Mapping[str, Key], config: Any, values: Mapping[str, Any]) -> dict[str, Needs]:
    """Those keys of `values` that are not used under `config`, each with what it lacks; idle values are left out."""
    found = {name: keys[name].unmet(config) for name, value in values.items() if value not in keys[name].idle}
    return {name: need for name, need in found.items() if need}


def refusal(name: str, need: Needs, config: Any, value: Any) -> tuple[str, str]:
    """(message, hint) for a key that is given and not used."""
    return (
        f"{name} = {_shown(value)} is not used with {need.key} = {_shown(getattr(config, need.key))}",
        f"leave {name} out, or set {need.key} to {need.words}",
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)
