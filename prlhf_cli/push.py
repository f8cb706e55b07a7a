"""`prlhf push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Pushed


def show_pushed(result: Pushed) -> None:
    """Say where it is."""
    show.say(f"{result.folder}: {result.url}")


@options.of(show=show_pushed)
def command(
    _typed: options.Typed,
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, or one that prlhf export wrote.")],
    repo: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME; made if it is missing.")],
    public: Annotated[bool, typer.Option("--public", help="Let everyone read a new repository.")] = False,
) -> Pushed:
    """Upload the model of a run, or an export, to the Hugging Face hub. A new repository is private.

    prlhf push models/mine me/mine

    prlhf push runs/mine me/mine-run
    """
    from prlhf.api import push

    return push(folder, repo, public=public)
