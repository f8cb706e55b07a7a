"""Recipes: files with one section per stage, and settings that are typed over them.

A value comes from, in rising order: the default, the recipe, `--set key=value`, the key's own option. Unknown keys are
refused with the nearest known name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from prlhf.config import SAVED, STAGES, ClusterConfig, Stage
from prlhf.config.cluster import check_cluster
from prlhf.config.keys import refusal, unused
from prlhf.config.stage import unknown_key
from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.files import at_home
from prlhf.parse import yaml_value
from prlhf.results import ShippedRecipe

S = TypeVar("S", bound=Stage)
Sections = Mapping[str, Mapping[str, Any]]  # stage -> its keys


def resolve(stage: type[S], *layers: Mapping[str, Any]) -> S:
    """Build a stage's config from layers of values, later ones winning; None means `not given`.

    A key that is not used is refused, with two exceptions in the first layer, a recipe: what is typed may have made it
    useless (`--user-model individual` over a recipe for clusters), and a recipe may spell out defaults.
    """
    givens = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    merged = {key: value for layer in givens for key, value in layer.items()}
    typed = {key for layer in givens[1:] for key in layer}
    for key in merged:
        if key not in stage.model_fields:
            raise PrlhfError(*unknown_key(stage, str(key)))
    config = stage.model_validate(merged, context=SAVED)
    if not stage.refuses_unused:
        return config
    given = {key: getattr(config, key) for key in merged}
    needless = unused(stage.declared, config, given)
    for key, need in needless.items():
        if key in typed or (need.key not in typed and key in config.given()):
            raise PrlhfError(*refusal(key, need, config, given[key]))
    return stage.model_validate({key: value for key, value in merged.items() if key not in needless})


def cluster_of(recipe: Sections, typed: Mapping[str, Any]) -> ClusterConfig:
    """The section `cluster` of a recipe with what was typed over it. Raises PrlhfError for what is not used."""
    given = {key: value for key, value in typed.items() if value is not None}
    config = resolve(ClusterConfig, recipe.get("cluster", {}), given)
    check_cluster(config, given)
    return config


def over(sections: Sections, others: Sections) -> dict[str, dict[str, Any]]:
    """The sections with the keys of `others` over them."""
    return {stage: {**sections.get(stage, {}), **others.get(stage, {})} for stage in {**sections, **others}}


# ---- files ----


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with prlhf, by name: in the package when installed, beside it in a checkout."""
    here = Path(__file__).parent
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path | None) -> dict[str, dict[str, Any]]:
    """Read a recipe, a file or a shipped one's name: a mapping of stage names to that stage's keys.

    None is the empty recipe. Values are checked when a stage is resolved.
    """
    if recipe is None:
        return {}
    path = shipped_recipes().get(str(recipe), Path(at_home(str(recipe))))
    try:
        loaded = yaml_value(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise PrlhfError(
            f"no recipe at {path}", f"give a file, or a shipped one: {nearest(str(recipe), shipped_recipes())}"
        ) from error
    except (ValueError, OSError) as error:
        raise PrlhfError(f"cannot read recipe {path}: {one_line(error)}", "fix the YAML") from error
    if not isinstance(loaded, dict):
        raise PrlhfError(f"recipe {path} holds no sections", f"use the sections {', '.join(STAGES)}")
    for section, values in loaded.items():
        if section not in STAGES:
            raise PrlhfError(f"recipe {path} has an unknown section '{section}'", nearest(str(section), STAGES))
        if not isinstance(values, dict):
            raise PrlhfError(f"section '{section}' of {path} is not a mapping", "write one `key: value` per line")
    return loaded


def described_recipes() -> list[ShippedRecipe]:
    """The shipped recipes, each with the command that its header opens with and the first sentence after it."""
    return [_described(name, text_of(name)) for name in shipped_recipes()]


def text_of(name: str) -> str:
    """A shipped recipe as it stands in its file. Raises PrlhfError for an unknown name."""
    path = shipped_recipes().get(name)
    if path is None:
        raise PrlhfError(f"no recipe is called '{name}'", nearest(name, shipped_recipes()))
    return path.read_text(encoding="utf-8")


def _described(name: str, text: str) -> ShippedRecipe:
    lines = [line.removeprefix("#").strip() for line in text.split("\n") if line.startswith("#")]
    about = " ".join(lines[1:]).strip()
    return ShippedRecipe(name=name, command=lines[0], about=about.partition(". ")[0].rstrip(".") + ".")


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe file: a section for each stage, and in it the stage's keys."""
    sections: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for name, stage in STAGES.items():
        found = stage.model_json_schema(ref_template="#/$defs/{model}")
        shared |= found.pop("$defs", {})
        found.pop("required", None)  # a command's own arguments and flags complete a section
        sections[name] = found
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prlhf recipe",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        **({"$defs": shared} if shared else {}),
    }


# ---- what is typed ----


def parse_override(text: str, stage: str) -> tuple[str, Any]:
    """`alpha=0.3` or `train.alpha=0.3` to (`alpha`, 0.3); dashes in keys count as underscores."""
    key, separator, value = text.partition("=")
    key = key.strip().removeprefix(f"{stage}.").replace("-", "_")
    if not separator or not key:
        example = "alpha=0.3" if stage == "train" else "workers=2" if stage == "cluster" else "seed=1"
        raise PrlhfError(f"'{text}' is not key=value", f"write it as in --set {example}")
    try:
        return key, yaml_value(value)
    except ValueError as error:
        raise PrlhfError(f"cannot read the value of '{text}': {one_line(error)}", "quote it") from error


def parse_overrides(texts: list[str] | None, stage: str) -> dict[str, Any]:
    """All `--set` of a command; later ones win."""
    values = dict(parse_override(text, stage) for text in texts or [])
    for key, value in values.items():
        if value is None:
            raise PrlhfError(f"--set {key}= gives no value", f"leave it out for what {key} is without it")
    return values


def typed_settings(
    options: Mapping[str, Mapping[str, Any]], sets: list[str], stages: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """What was typed for each stage: the `--set` of a command and, over them, its options; None means `not given`.

    A `--set` names a key of `stages`: `STAGE.key=value`, or `key=value` of the first stage that has the key.
    """
    found: dict[str, dict[str, Any]] = {stage: {} for stage in (*stages, *options)}
    for text in sets:
        stage = _stage_of(text.partition("=")[0].strip(), stages)
        found[stage] |= parse_overrides([text], stage)
    for stage, values in options.items():
        given = {key: value for key, value in values.items() if value is not None}
        found[stage] |= {key: _as_setting(STAGES[stage], key, value) for key, value in given.items()}
    return found


def _stage_of(name: str, stages: tuple[str, ...]) -> str:
    stage, dot, _ = name.partition(".")
    if dot and stage in stages:
        return stage
    return next((stage for stage in stages if name.replace("-", "_") in STAGES[stage].model_fields), stages[0])


def _as_setting(stage: type[Stage], key: str, value: Any) -> Any:
    """The value of a key's option as the key has it."""
    if isinstance(value, list):
        return value if stage.declared[key].texts else parse_entries(value, stage, key)
    if isinstance(value, bool) and (choices := get_args(stage.model_fields[key].annotation)):  # --strict/--skip-bad
        return choices[0 if value else 1]
    return value


def parse_entries(texts: list[str], stage: type[Stage], key: str) -> dict[str, Any]:
    """All of a repeated `--template-option KEY=VALUE`; values as YAML reads them, unless the key holds texts."""
    about, option = stage.declared[key], option_of(stage, key)
    plain = stage.model_fields[key].annotation == dict[str, str]
    values: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not all((name.strip(), value)):
            raise PrlhfError(f"{option} {text} is not {about.form}", f"write it as in {option} {about.example}")
        try:
            values[name.strip()] = value if plain else yaml_value(value)
        except ValueError as error:
            raise PrlhfError(f"cannot read the value of '{text}': {one_line(error)}", "quote it") from error
    return values


def option_of(stage: type[Stage], key: str) -> str:
    """The option of a key, as it is typed: `--lora-targets`."""
    return stage.declared[key].flag or f"--{key.replace('_', '-')}"
