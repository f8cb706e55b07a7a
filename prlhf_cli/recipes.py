"""`prlhf recipes`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from prlhf_cli import show


def command(
    action: Annotated[
        Literal["list", "show", "schema"],
        typer.Argument(help="list: all with a line each; show NAME: one as it stands; schema: for editors."),
    ] = "list",
    name: Annotated[str | None, typer.Argument(help="Of the recipe to show.")] = None,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """List or show the recipes that come with prlhf, or print the JSON schema of a recipe file.

    prlhf recipes list

    prlhf recipes show demo

    prlhf recipes schema
    """

    def work(_bars: show.Bars) -> dict[str, Any]:
        from prlhf.errors import PrlhfError
        from prlhf.recipe_files import described_recipes, schema, text_of

        if (action == "show") != (name is not None):
            told = "show needs the name of a recipe" if action == "show" else f"{action} takes no name, got '{name}'"
            raise PrlhfError(told, "see `prlhf recipes list`, then `prlhf recipes show NAME`")
        if action == "schema":
            return schema()
        return {"recipes": described_recipes()} if name is None else {"name": name, "text": text_of(name)}

    show.run(work, _show, as_json)


def _show(found: dict[str, Any]) -> None:
    if "recipes" in found:
        rows = [(one["name"], one["about"]) for one in found["recipes"]]
        show.table("recipes", ["name", "about"], rows, texts=2)
    elif "text" in found:
        show.say(found["text"].rstrip("\n"))
    else:
        import json

        show.say(json.dumps(found, indent=2))
