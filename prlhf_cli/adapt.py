"""`prlhf adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Adapted, AdaptedUser, Asked, Forgotten, RolledBack

SHOWN = 20  # users of a table


def show_result(result: Adapted | Forgotten | RolledBack) -> None:
    """Show the users that were learned, or who was forgotten or is as before."""
    from prlhf.results import Asked, Forgotten, RolledBack

    if isinstance(result, RolledBack):
        from_what = f"learned from {result.choices} choices" if result.version else "as before any choice"
        show.say(f"{result.user_id} is version {result.version}, {from_what}; {result.undone} were undone")
        return

    if isinstance(result, Forgotten):
        show.say(f"{result.forgotten} is forgotten: nothing of the user is left in {result.run}")
        return
    if isinstance(result, Asked):
        show_session(result)
        if not result.users:
            return
    show_users(f"{result.run}: {len(result.users)} users from {result.choices} new choices", result.users)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    show.say(f"{result.passes} passes; {seconds}")


def show_session(result: Asked) -> None:
    """Show how the questions ended, and what the answers changed."""
    left = "" if result.information is None else f"; the best question left would tell {result.information:.3f} nats"
    show.say(f"{result.asked} answers in {result.answers}, {result.ended}{left}")
    if not result.users:
        show.say("nothing is known of the user, so nothing was changed")
    elif result.agrees is not None:
        before, now = show.percent(result.agreed_before), show.percent(result.agrees)
        show.say(f"the user would now make {now} of these choices, before {before}")
        show.say(f"and would choose otherwise than before in {show.percent(result.changed)} of {result.pairs} pairs")


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
        typer.Option(metavar="USER", help="Remove this user from the run: row, id, text, choices, conversations."),
    ] = None,
    rollback: Annotated[
        str | None,
        typer.Option(metavar="USER", help="Make this user what the version before was; see prlhf users --user."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="With --rollback: this version; 0: before any choice.", min=0)
    ] = None,
) -> Adapted | Asked | Forgotten | RolledBack:
    """Learn new users from a handful of choices each, with the language model as it is.

    prlhf adapt runs/demo --choices choices.jsonl

    prlhf adapt runs/demo --choices choices.jsonl --user ann --out runs/demo-ann

    prlhf adapt runs/demo --ask --user ann --pool pairs.jsonl

    prlhf adapt runs/demo --rollback ann

    prlhf adapt runs/demo --forget ann
    """
    from prlhf import api

    progress = typed.progress
    settings = {key: value for key, value in typed.settings["adapt"].items() if value is not None}
    if version is not None and rollback is None:
        raise PrlhfError(f"--version {version} has no --rollback", "say whose version it is: --rollback USER")
    if forget is not None or rollback is not None:
        option = "--rollback" if forget is None else "--forget"
        given = [*settings, *(["a recipe"] if typed.recipe is not None else [])]
        given += ["--rollback"] if forget is not None and rollback is not None else []
        if given:
            raise PrlhfError(f"{option} takes no other settings, got {', '.join(given)}", "leave them out")
        if rollback is not None:
            return api.roll_back(run, rollback, version, progress=progress)
        assert forget is not None
        return api.forget(run, forget, progress=progress)
    known = typed.sections().get("adapt", {}) | settings
    if not known.get("ask"):
        return api.adapt(run, recipe=typed.recipe, progress=progress, **settings)
    from prlhf_cli.asking import answerer

    settings |= {"user": known.get("user")}
    return api.ask(run, answer=answerer(), recipe=typed.recipe, progress=progress, **settings)
