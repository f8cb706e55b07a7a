"""Questions of `prlhf adapt --ask`: two responses side by side and one key; or lines, for scripts."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from prlhf.errors import PrlhfError

if TYPE_CHECKING:
    from prlhf.adapt.ask import Answer, Answerer, PairQuestion

SIDE_BY_SIDE = 80  # columns of a terminal; on a narrower one the responses stand one below the other
KEYS: Mapping[str, Answer] = {"1": "left", "2": "right", "t": "tie", "s": "skip", "u": "undo", "q": "stop"}
ARROWS: Mapping[str, Answer] = {"\x1b[D": "left", "\x1bOD": "left", "\x1b[C": "right", "\x1bOC": "right"}
NOBODY = "there is no terminal to ask on", "run it in a terminal, or give the answers as lines of standard input"
HELP = "1 or ←: left   2 or →: right   t: tie   s: skip   u: undo   q: stop"


def answerer() -> Answerer:
    """Who answers: a person at the terminal, or the lines of standard input.

    Raises:
        PrlhfError: there is neither a terminal nor something to read.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        if not sys.stderr.isatty():
            raise PrlhfError("questions are shown on standard error, which is not a terminal", "do not redirect it")
        return on_terminal
    if sys.stdin is None or _is_device(sys.stdin):  # closed, or /dev/null
        raise PrlhfError(*NOBODY)
    return by_lines


def _is_device(stream: TextIO) -> bool:
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # not a file of the system
        return False


def on_terminal(question: PairQuestion) -> Answer:
    """Show a question on standard error, and wait for one of the keys."""
    console = Console(stderr=True)
    console.rule(Text(f"question {question.number}"), align="left")
    console.print(Panel(_shown(question.prompt), title="prompt", title_align="left", border_style="dim"))
    panels = [
        Panel(_shown(text), title=title, title_align="left")
        for title, text in (("1", question.left), ("2", question.right))
    ]
    if console.width >= SIDE_BY_SIDE:
        console.print(Columns(panels, width=console.width // 2 - 1, padding=(0, 1)))
    else:
        console.print(*panels)
    console.print(Text(f"{HELP}   (uncertainty {question.uncertainty:.2f})", style="dim"))
    while True:
        try:
            pressed = typer.getchar()
        except EOFError:
            return "stop"
        if (reply := KEYS.get(pressed.lower(), ARROWS.get(pressed))) is not None:
            console.print(Text(reply, style="bold"))
            return reply


def by_lines(question: PairQuestion) -> Answer:
    """Write a question as a line of JSON to standard output, and read a key from a line of standard input.

    Raises:
        PrlhfError: the line is not one of the keys, or there is not a single one.
    """
    from prlhf.parse import json_text

    sys.stdout.write(json_text(vars(question), ensure_ascii=False) + "\n")
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:
        if question.number == 1 and not question.undo:  # an empty standard input, as of a job without a terminal
            raise PrlhfError(*NOBODY)
        return "stop"
    if (reply := KEYS.get(line.strip().lower())) is None:
        raise PrlhfError(f"the line '{line.strip()}' is not an answer", f"write one of {', '.join(KEYS)}")
    return reply


def _shown(text: Any) -> Text:
    """A text, or the messages of a conversation, without what a terminal would take for a command."""
    if not isinstance(text, str):
        one = len(text) == 1
        text = "\n".join(turn["content"] if one else f"{turn['role']}: {turn['content']}" for turn in text)
    plain = text.strip().expandtabs(4)
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in plain))
