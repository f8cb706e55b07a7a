"""`prlhf prep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import PreparedData


def show_data(data: PreparedData) -> None:
    """Show how many comparisons and users were kept, what was dropped, and how the rows fit a base model."""
    rows: list[tuple[str, object]] = [(split, count) for split, count in data.kept.items()]
    rows += [(f"users {kind}", count) for kind, count in data.users.items()]
    show.table(str(data.folder), ["kept", "count"], rows)
    dropped = [(reason, count) for reason, count in _flat(data.dropped) if count]
    if dropped:
        show.table("dropped", ["reason", "rows"], dropped)
    if room := data.room:
        rows = [(f"{share} of the rows have at most", tokens) for share, tokens in room["tokens"].items()]
        rows += [(f"{part} that do not fit", count) for part, count in room["do_not_fit"].items()]
        show.table(f"{room['model']}: context of {room['context']:,} tokens", ["tokens", ""], rows)
        if room["why"]:
            show.say(f"{room['why']}; training leaves them out with skip_long, max_prompt_tokens cuts prompts")


def _flat(counts: dict[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    for key, value in counts.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
    return rows


@options.of("prep", show=show_data)
def command(
    typed: options.Typed,
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model (hub id, folder, .gguf): say how the rows fit its context; only its tokenizer is read."
        ),
    ] = None,
) -> PreparedData:
    """Turn raw data into a prepared data set: train, eval and users as parquet, and a manifest.

    prlhf prep demo --out data/demo

    prlhf prep tldr --source raw/tldr --simulate length --minority 0.3 --out data/tldr

    prlhf prep prism --source raw/prism --out data/prism

    prlhf prep choices.jsonl --column user_id=annotator --out data/mine

    prlhf prep choices.jsonl --model tiny --out data/mine
    """
    from prlhf.api import prepare

    return prepare(recipe=typed.recipe, model=model, progress=typed.progress, **typed.settings["prep"])
