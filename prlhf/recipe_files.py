"""Recipes as files: those that come with prlhf, told apart by what their headers say, and a JSON schema for editors."""

from __future__ import annotations

from typing import Any

from prlhf.config import STAGES, shipped_recipes
from prlhf.errors import PrlhfError, nearest


def described_recipes() -> list[dict[str, str]]:
    """The shipped recipes: `name`, the `command` that the header opens with, and `about`, its first sentence."""
    return [_described(name, text_of(name)) for name in shipped_recipes()]


def text_of(name: str) -> str:
    """A shipped recipe as it stands in its file. Raises PrlhfError for an unknown name."""
    path = shipped_recipes().get(name)
    if path is None:
        raise PrlhfError(f"no recipe is called '{name}'", nearest(name, shipped_recipes()))
    return path.read_text(encoding="utf-8")


def _described(name: str, text: str) -> dict[str, str]:
    lines = [line.removeprefix("#").strip() for line in text.split("\n") if line.startswith("#")]
    about = " ".join(lines[1:]).strip()
    return {"name": name, "command": lines[0], "about": about.partition(". ")[0].rstrip(".") + "."}


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
