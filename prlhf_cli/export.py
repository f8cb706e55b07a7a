"""`prlhf export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Exported


def show_exported(result: Exported) -> None:
    """Say where each user is, and how far what was written is from the run."""
    for person in result.people:
        show.say(f"{person.folder}: {person.user} ({result.format})")
    if result.compared:
        show.say(
            f"compared with the run on {result.compared.rows} held-out responses: "
            f"log-probs differ by at most {result.compared.difference:.2g} nats per token"
        )


@options.of(show=show_exported)
def command(
    typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    user: Annotated[list[str], typer.Option(help="Id of a user of the run, or generic. Repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to write; several users get a folder each in it.")],
    format: Annotated[
        Literal["peft", "gguf", "hf", "hf-users", "vllm", "ollama"],
        typer.Option(
            help="peft: an adapter for PEFT, vLLM, SGLang, TGI; gguf: an adapter for llama.cpp; hf: a whole model; "
            "hf-users: a whole model with the users as tokens; vllm: a whole model and files of vectors; "
            "ollama: Modelfiles."
        ),
    ] = "peft",
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Number format in which whole models are written.")
    ] = "fp32",
    model: Annotated[str | None, typer.Option(help="Where the base model is, if it has moved.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the base model.")
    ] = False,
) -> Exported:
    """Write people of a run for other programs: as adapters, as whole models, or as tokens of a model.

    prlhf export runs/mine --user ann --out adapters/ann

    prlhf export runs/mine --format hf-users --user ann --user bob --out models/mine

    prlhf export runs/mine --user ann --user bob --user generic --out adapters

    prlhf export runs/mine --format gguf --user ann --out llama/ann
    """
    from prlhf.api import export

    return export(
        run,
        user,
        out,
        format=format,
        precision=precision,
        model=model,
        trust_remote_code=trust_remote_code,
        progress=typed.progress,
    )
