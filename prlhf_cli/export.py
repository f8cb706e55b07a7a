"""`prlhf export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Exported


def show_exported(result: Exported) -> None:
    """Say where each user's adapter is."""
    for adapter in result.adapters:
        show.say(f"{adapter.folder}: {adapter.user} ({result.format})")


@options.of(show=show_exported)
def command(
    typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    user: Annotated[list[str], typer.Option(help="Id of a user of the run, or generic. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to write; several users get a folder each in it.")],
    format: Annotated[
        Literal["peft", "gguf"], typer.Option(help="peft: PEFT, vLLM, SGLang, TGI; gguf: llama.cpp (--lora).")
    ] = "peft",
    model: Annotated[str | None, typer.Option(help="Where the base model is, if it has moved.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the base model.")
    ] = False,
) -> Exported:
    """Write a person of a run as an ordinary LoRA adapter. It takes a run with --user-in adapter, or without users.

    prlhf export runs/mine --user ann --out adapters/ann

    prlhf export runs/mine --user ann --user bob --user generic --out adapters

    prlhf export runs/mine --format gguf --user ann --out llama/ann
    """
    from prlhf.api import export

    return export(
        run, user, out, format=format, model=model, trust_remote_code=trust_remote_code, progress=typed.progress
    )
