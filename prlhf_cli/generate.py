"""`prlhf generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Responses


def show_responses(result: Responses) -> None:
    """Say how many responses there are, and where."""
    show.say(f"{result.out}: {result.responses} responses for {result.users} users ({result.new} new)")


@options.of("generate", "cluster", show=show_responses)
def command(
    typed: options.Typed,
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a finished run, or its id on the hub, OWNER/NAME; some baselines need none."),
    ] = None,
) -> Responses:
    """Write responses, one row per (prompt, user). A rerun continues where a killed one stopped.

    prlhf generate runs/demo --prompts eval --users all --out responses.jsonl

    prlhf generate runs/demo --prompts mine.txt --users 4,7,generic --temperature 0

    prlhf generate runs/sft --best-of 8 --reward runs/demo-rm-individual

    prlhf generate runs/demo --workers 4 --out responses

    prlhf generate --baseline oracle --model tiny --dataset data/demo-profiles --out oracle.jsonl

    prlhf generate --baseline chosen --dataset data/demo --out chosen.jsonl
    """
    from prlhf.api import generate

    return generate(
        run,
        recipe=typed.recipe,
        cluster=typed.settings["cluster"],
        progress=typed.progress,
        **typed.settings["generate"],
    )
