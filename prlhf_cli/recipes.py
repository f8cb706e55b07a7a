"""`prlhf recipes`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show


def show_recipes(found: dict[str, Any]) -> None:
    """Show the list of recipes, one recipe, or the schema."""
    if "recipes" in found:
        rows = [(one.name, one.about) for one in found["recipes"]]
        show.table("recipes", ["name", "about"], rows, texts=2)
    else:
        show.say(found["text"].rstrip("\n") if "text" in found else json.dumps(found, indent=2))


@options.of(show=show_recipes)
def command(
    _typed: options.Typed,
    action: Annotated[
        Literal["list", "show", "schema"],
        typer.Argument(help="list: all with a line each; show NAME: one as it stands; schema: for editors."),
    ] = "list",
    name: Annotated[str | None, typer.Argument(help="The recipe to show.")] = None,
) -> dict[str, Any]:
    """List or show the recipes that come with prlhf, or print the JSON schema of a recipe file.

    prlhf recipes list

    prlhf recipes show demo

    prlhf recipes schema
    """
    from prlhf.recipes import described_recipes, schema, text_of

    if (action == "show") != (name is not None):
        told = "show needs the name of a recipe" if action == "show" else f"{action} takes no name, got '{name}'"
        raise PrlhfError(told, "see `prlhf recipes list`, then `prlhf recipes show NAME`")
    if action == "schema":
        return schema()
    return {"recipes": described_recipes()} if name is None else {"name": name, "text": text_of(name)}
