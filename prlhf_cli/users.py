"""`prlhf users`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf_cli import options, show
from prlhf_cli.adapt import show_users

if TYPE_CHECKING:
    from prlhf.results import RunUsers


def show_list(found: RunUsers) -> None:
    """Show how many users there are, and what is known of adapted ones; of one user the versions."""
    if found.versions:
        show_users(f"{found.run}", found.adapted)
        rows = [(one.version, one.at or "not known", one.choices) for one in found.versions]
        show.table("versions that are kept; the last one holds", ["version", "learned at", "choices"], rows, texts=0)
        return
    empty = f", {found.forgotten} forgotten" if found.forgotten else ""
    show.say(f"{found.run}: {found.trained} trained users, {len(found.adapted)} adapted{empty}")
    if found.adapted:
        show_users("adapted", found.adapted)


@options.of(show=show_list)
def command(
    _typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    user: Annotated[str | None, typer.Option(help="This user alone, with former versions.")] = None,
) -> RunUsers:
    """List the users of a run: how many were trained, and what is known of those learned by `prlhf adapt`.

    prlhf users runs/demo

    prlhf users runs/demo --json

    prlhf users runs/demo --user ann
    """
    from prlhf import api

    return api.users(run, user)
