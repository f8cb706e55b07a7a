"""`prlhf feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import KeptFeedback


def show_kept(result: KeptFeedback) -> None:
    """Say what was written, or removed."""
    done = f"written to {result.out}" if result.out else f"removed from {result.feedback}"
    show.say(f"{result.choices:,} choices {done}")


@options.of(show=show_kept)
def command(
    _typed: options.Typed,
    action: Annotated[
        Literal["export", "forget"],
        typer.Argument(help="export: as custom data, for prep and adapt; forget: remove a user's choices."),
    ],
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run that was served, or a file that it was given by `prlhf serve --feedback`."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="JSONL file to export to.")] = None,
    user: Annotated[str | None, typer.Option(help="The choices of this user alone.")] = None,
) -> KeptFeedback:
    """Export the choices that `prlhf serve` collected, or remove those of a user.

    prlhf feedback export runs/demo --out choices.jsonl

    prlhf feedback forget runs/demo --user ann
    """
    from prlhf import api
    from prlhf.errors import PrlhfError

    if (action == "export") != (out is not None) or (action == "forget" and user is None):
        needs = "export needs --out" if action == "export" else "forget needs --user, and takes no --out"
        raise PrlhfError(needs, "see `prlhf feedback --help`")
    return api.feedback(run, out=out, user=user)
