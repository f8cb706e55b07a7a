"""`prlhf serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Served


def show_served(result: Served) -> None:
    """Say what was served."""
    show.say(f"{result.run} was served at {result.address}: {result.tokens:,} tokens written")


@options.of("serve", show=show_served)
def command(
    typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its id on the hub, OWNER/NAME.")],
) -> Served:
    """Serve a run behind an OpenAI-compatible API, in which each request says who asks. Ctrl-C ends it.

    prlhf serve runs/demo

    prlhf serve runs/demo --host 0.0.0.0 --keys keys.txt --unknown refuse

    prlhf serve runs/demo --replicas 2 --max-replicas 4
    """
    from prlhf import api

    return api.serve(run, recipe=typed.recipe, progress=typed.progress, **typed.settings["serve"])
