"""`prlhf adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Adapted, AdaptedUser, Forgotten

SHOWN = 20  # users of a table


def show_result(result: Adapted | Forgotten) -> None:
    """Show the users that were learned, or who was forgotten."""
    from prlhf.results import Forgotten

    if isinstance(result, Forgotten):
        show.say(f"{result.forgotten} is forgotten: nothing of the user is left in {result.run}")
        return
    show_users(f"{result.run}: {len(result.users)} users from {result.choices} new choices", result.users)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    show.say(f"{result.passes} passes; {seconds}")


def show_users(title: str, users: list[AdaptedUser]) -> None:
    """Show what is known of the first of `users`."""
    columns = ["user", "told apart", "index", "choices", "gain (nats)", "uncertainty"]
    rows = [
        (user.user_id, user.told_apart, user.user_index, user.choices, f"{user.gain:+.1f}", f"{user.uncertainty:.2f}")
        for user in users[:SHOWN]
    ]
    show.table(title, columns, rows, texts=2)
    if len(users) > SHOWN:
        show.say(f"and {len(users) - SHOWN} more: see --json")


@options.of("adapt", show=show_result)
def command(
    typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    forget: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Remove this user from the run: row, id, text and choices."),
    ] = None,
) -> Adapted | Forgotten:
    """Learn new users from a handful of choices each, with the language model as it is.

    prlhf adapt runs/demo --choices choices.jsonl

    prlhf adapt runs/demo --choices choices.jsonl --user ann --out runs/demo-ann

    prlhf adapt runs/demo --forget ann
    """
    from prlhf import api

    settings, progress = typed.settings["adapt"], typed.progress
    if forget is None:
        return api.adapt(run, recipe=typed.recipe, progress=progress, **settings)
    given = [key for key, value in settings.items() if value is not None]
    if given or typed.recipe is not None:
        raise PrlhfError(f"--forget takes no other settings, got {', '.join(given) or 'a recipe'}", "leave them out")
    return api.forget(run, forget, progress=progress)
