"""`prlhf chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prlhf_cli import options

if TYPE_CHECKING:
    from prlhf.results import ChatSummary


def show_talk(_talk: ChatSummary) -> None:
    """Show nothing: all was said."""


@options.of(show=show_talk)
def command(
    typed: options.Typed,
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or its id on the hub, OWNER/NAME.")],
    user: Annotated[str, typer.Option(help="Id of a user of the run, or generic.")] = "generic",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling; 0 takes the most probable token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Sample from this share of the probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    choices: Annotated[Path, typer.Option(help="File that /choose appends to.")] = Path("choices.jsonl"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Number format of the model.")] = "auto",
    model: Annotated[str | None, typer.Option(help="Where the base model is, if it has moved.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with the base model.")
    ] = False,
) -> ChatSummary:
    """Talk with a run in the terminal, as one of its users. /help lists what can be typed; Ctrl-C stops an answer.

    prlhf chat runs/mine --user ann

    echo "Explain tides." | prlhf chat runs/mine --user ann --temperature 0
    """
    from prlhf.config import GenerateConfig
    from prlhf.conversation import open_conversation
    from prlhf.recipes import resolve
    from prlhf.results import ChatSummary
    from prlhf_cli.talk import talk

    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "device": device,
        "precision": precision,
        "model": model,
        "trust_remote_code": trust_remote_code,
    }
    used = settings if top_p == 1.0 else settings | {"top_p": top_p}
    config = resolve(
        GenerateConfig, {name: value for name, value in used.items() if value is not None and value is not False}
    )
    conversation = open_conversation(run, user, config, typed.progress)
    typed.progress.finish()
    counts = talk(conversation, choices, sys.stdin)
    return ChatSummary.model_validate({"run": str(run), "choices": str(choices), **counts})
