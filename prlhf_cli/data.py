"""`prlhf data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import DataView

USERS, PAIRS = 20, 10  # the most rows of a table
LOSS, CUT = "green", "red strike"


def show_view(found: DataView) -> None:
    """Show comparisons per user, users' agreement, and the rows."""
    counts = found.comparisons
    show.say(f"{found.dataset}: {counts['train']} training and {counts['eval']} held-out comparisons")
    said, by_user = found.agreement, found.agreement["by_user"]
    rows = []
    for user in found.users[:USERS]:
        others = by_user.get(user["user_id"], {"others": 0, "same": None})
        rows.append((user["user_id"], user["train"], user["eval"], others["others"], show.percent(others["same"])))
    more = f" (the first {USERS} of {len(found.users)})" if len(found.users) > USERS else ""
    columns = ["user", "training", "held out", "others' choices of the same pairs", "agree"]
    show.table(f"comparisons per user{more}", columns, rows)
    if said["pairs"]:
        show.say(f"{said['pairs']} pairs were judged by several users, who agree in {show.percent(said['same'])}")
        least = sorted(said["between"], key=lambda one: one["same"])[:PAIRS]
        pairs = [(" and ".join(one["users"]), one["pairs"], show.percent(one["same"])) for one in least]
        show.table("who agrees least", ["users", "common pairs", "agree"], pairs)
    else:
        show.say("no pair was judged by two users")
    show.say(f"rows as {found.model} reads them, up to {found.context} tokens; what the loss counts is {LOSS}")
    for row in found.rows:
        show_row(row)


def show_row(row: dict[str, Any]) -> None:
    """Show a row in pieces."""
    who = f"{row['user_id']} (index {row['user_index']})" if row["user_index"] else f"{row['user_id']} (as generic)"
    title = f"{row['id']}: {row['split']}, user {who}, {row['tokens']} tokens"
    if row["cut"]:
        title += f", {row['cut']} were cut"
    show.pieces(title, map(piece_row, row["pieces"]))
    if row["left_out"]:
        show.say(f"training leaves it out or refuses it: {row['left_out']}")


def piece_row(piece: dict[str, Any]) -> tuple[str, int, str, list[str]]:
    """A piece as `show.pieces` takes it: its name says what its color does."""
    kind = "cut" if piece["cut"] else "loss" if piece["loss"] else "read"
    name = f"{'shared' if piece['of'] == 'both' else piece['of']}: {piece['part']} ({kind})"
    style = {"cut": CUT, "loss": LOSS, "read": ""}[kind]
    texts = piece.get("texts", [])
    return name, piece["tokens"], style, texts if any(texts) else [piece["text"]]


@options.of(show=show_view, sets=("train",))
def command(
    typed: options.Typed,
    action: Annotated[Literal["show"], typer.Argument(help="show: rows, users and their agreement.")],  # noqa: ARG001
    dataset: Annotated[str, typer.Argument(help="Prepared folder, or a known name.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Show single tokens; with --json their ids.")] = False,
    user: Annotated[str | None, typer.Option(help="Show only this user's rows.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show, training rows first.", min=0)] = 5,
    model: Annotated[
        str | None, typer.Option(help="Base model whose tokenizer and context are used (default: as in training).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with users, agreement and tokens.")] = None,
) -> DataView:
    """Show rows of prepared data as training reads them: chat template, tokens, loss mask, what is shared and cut.

    prlhf data show data/demo

    prlhf data show data/demo --tokens --user u01 --rows 3 --model tiny

    prlhf data show data/mine --recipe runs/mine/recipe.yaml --html mine.html
    """
    from prlhf import api

    given = typed.settings["train"] | ({} if model is None else {"model": model})
    return api.show_data(
        dataset,
        recipe=typed.sections(),
        user=user,
        rows=rows,
        tokens=tokens,
        html=html,
        progress=typed.progress,
        **given,
    )
