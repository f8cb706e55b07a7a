"""Write what is made from the declarations of the settings: `python docs/settings.py`. A test compares them.

prlhf_cli/options.json   the option of every key, read by `prlhf_cli.options`
docs/SETTINGS.md         a table of all keys
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from prlhf.config import STAGES, PrepConfig, Stage
from prlhf.config.keys import Needs
from prlhf.config.stage import bounds_of
from prlhf.recipes import option_of
from prlhf_cli import options

PAGE = Path(__file__).resolve().parent / "SETTINGS.md"
COMMAND = "python docs/settings.py"
ARGUMENTS = {("prep", "dataset")}  # keys that are given without the name of an option
KINDS: dict[Any, str] = {bool: "switch", int: "int", float: "float", str: "text", Path: "path", dict: "entries"}


# ---- options.json ----


def options_json() -> str:
    """The options of all keys: `flag`, `kind`, `choices`, `help`, `panel` and, where only some have it, commands."""
    found = {name: {key: _option(name, stage, key) for key in stage.model_fields} for name, stage in STAGES.items()}
    for stage, described in found.items():
        panel = options.OWN
        for key, about in described.items():  # a heading holds up to the next one
            about["panel"] = panel = STAGES[stage].declared[key].panel or panel
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _option(name: str, stage: type[Stage], key: str) -> dict[str, Any]:
    about, (kind, choices), option = stage.declared[key], kind_of(stage, key), option_of(stage, key)
    if kind == "switch" and "/" not in option:
        option += f"/--no-{option.removeprefix('--')}"
    found: dict[str, Any] = {"flag": option, "kind": kind, "help": help_of(stage, key)}
    found |= {"choices": choices} if choices else {}
    found |= {"form": about.form} if kind == "entries" else {}
    found |= {"of": about.commands} if about.commands else {}
    return found | ({"argument": True} if (name, key) in ARGUMENTS else {})


def kind_of(stage: type[Stage], key: str) -> tuple[str, tuple[Any, ...]]:
    """What the option of a key takes, and the values to choose from."""
    kind: Any = stage.model_fields[key].annotation
    if get_origin(kind) is UnionType or type(None) in get_args(kind):
        kind = next(one for one in get_args(kind) if one is not type(None))
    if names := stage.declared[key].named:
        return "name", tuple(names.ours)
    if get_origin(kind) is Literal:
        return "switch" if "/" in (stage.declared[key].flag or "") else "choice", get_args(kind)
    return KINDS[get_origin(kind) or kind], ()


def help_of(stage: type[Stage], key: str) -> str:
    """What an option's help says: the meaning of the key and, in brackets, when it is used, its bounds and default."""
    about, field = stage.declared[key], stage.model_fields[key]
    used = f"only with {conditions(stage, key)}" if about.used else ""
    default = "" if field.is_required() else f"default: {default_of(stage, key)}"
    example = f"as in {about.example}" if about.example else ""
    brackets = "; ".join(filter(None, [example, used, bounds_of(stage, key), default]))
    return f"{field.description}{f' ({brackets})' if brackets else ''}"


def conditions(stage: type[Stage], key: str) -> str:
    """When a key is used, in the options of its stage."""
    return ", ".join(_condition(stage, need) for need in stage.declared[key].used)


def _condition(stage: type[Stage], need: Needs) -> str:
    option = option_of(stage, need.key)
    if need.words in ("true", "false"):
        return option if need.words == "true" else option.replace("--", "--no-", 1)
    return need.words if stage is PrepConfig and need.key == "dataset" else f"{option} {need.words}"


def default_of(stage: type[Stage], key: str) -> str:
    """The default of a key as a recipe has it, or what None means."""
    default = stage.model_fields[key].default
    if default is None:
        return stage.declared[key].unset or "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default in ("", {}) else str(default)


# ---- SETTINGS.md ----


def page() -> str:
    """SETTINGS.md: a table of the keys of every stage."""
    parts = [
        f"# Settings\n\nWritten by `{COMMAND}`, from the declarations in `prlhf/config/`.\n\n"
        "A recipe has a section for each stage, with these keys. On the command line, each key is an option of its "
        "own, and `--set KEY=VALUE`; from Python, a keyword argument. A key that is given and not used is refused.\n"
    ]
    for name, stage in STAGES.items():
        rows = "\n".join(f"| {' | '.join(_row(name, stage, key))} |" for key in stage.model_fields)
        columns = "| key | option | type | default | bounds | meaning | used with |\n|---|---|---|---|---|---|---|"
        parts.append(f"## {name}\n\n{stage.__doc__}\n\n{columns}\n{rows}\n")
    return "\n".join(parts)


def _row(name: str, stage: type[Stage], key: str) -> Iterator[str]:
    kind, choices = kind_of(stage, key)
    listed = [*(f"`{one}`" for one in choices), *(["or an extension's name"] if kind == "name" else [])]
    option = _option(name, stage, key)["flag"]
    field = stage.model_fields[key]
    yield f"`{key}`"
    yield "(argument)" if (name, key) in ARGUMENTS else " ".join(f"`{one}`" for one in option.split("/"))
    yield ", ".join(listed) or {"switch": "true or false", "entries": "mapping"}.get(kind, kind)
    yield "(required)" if field.is_required() else default_of(stage, key)
    yield bounds_of(stage, key)
    yield str(field.description).replace("|", "\\|")
    yield " and ".join(f"`{need.key}` = {need.words}" for need in stage.declared[key].used)


if __name__ == "__main__":
    options.FILE.write_text(options_json(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
