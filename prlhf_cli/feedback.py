"""`prlhf feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import KeptConversations, KeptFeedback


def show_kept(result: KeptFeedback | KeptConversations) -> None:
    """Say what was written, or removed, or who has conversations."""
    from prlhf.results import KeptConversations

    if isinstance(result, KeptConversations):
        rows = [(user.user_id, user.conversations, user.last) for user in result.users]
        show.table(f"{result.feedback}", ["user", "conversations", "last"], rows, texts=1)
        if result.out:
            show.say(f"written to {result.out}")
        return
    if result.conversations:
        show.say(f"{result.conversations:,} conversations removed from {result.feedback}")
    done = f"written to {result.out}" if result.out else f"removed from {result.feedback}"
    show.say(f"{result.choices:,} choices {done}")


@options.of(show=show_kept)
def command(
    _typed: options.Typed,
    action: Annotated[
        Literal["export", "forget", "conversations"],
        typer.Argument(
            help="export: as custom data, for prep and adapt; forget: remove what was collected of a user; "
            "conversations: who has some, if the server kept them."
        ),
    ],
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run that was served, or a file that it was given by `prlhf serve --feedback`."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="JSONL file to write to.")] = None,
    user: Annotated[str | None, typer.Option(help="Those of this user alone.")] = None,
) -> KeptFeedback | KeptConversations:
    """Export the choices that `prlhf serve` collected, list conversations, or remove what was collected of a user.

    prlhf feedback export runs/demo --out choices.jsonl

    prlhf feedback conversations runs/demo --user ann --out ann.jsonl

    prlhf feedback forget runs/demo --user ann
    """
    from prlhf import api
    from prlhf.errors import PrlhfError

    if action == "conversations":
        return api.conversations(run, out=out, user=user)
    if (action == "export") != (out is not None) or (action == "forget" and user is None):
        needs = "export needs --out" if action == "export" else "forget needs --user, and takes no --out"
        raise PrlhfError(needs, "see `prlhf feedback --help`")
    return api.feedback(run, out=out, user=user)
