"""A conversation in the terminal: what is typed, and what is shown. Answers go to standard output, the rest beside."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import show

if TYPE_CHECKING:
    from prlhf.conversation import Dialogue, Reply

HELP = """\
/user NAME           continue as somebody else
/users               who the run knows
/regenerate          another answer to the last question
/compare NAME        the last question, answered for NAME too, side by side
/choose N [NAME]     continue with answer N, and keep it as NAME's choice for `prlhf adapt`
/save FILE           write what was said
/new                 forget what was said
/help                this list
/quit, Ctrl-D        leave
A line that ends in \\ continues in the next. // at its beginning is a /. Ctrl-C stops an answer."""
GROUP = 20  # users that /users shows


class Leave(Exception):
    """The conversation ends."""


def talk(conversation: Dialogue, choices: Path, typed: TextIO) -> dict[str, int]:
    """Read lines until the end of input. Returns how many `questions` were asked and `kept` choices were made."""
    session = Session(conversation, choices)
    on_terminal = typed.isatty() and sys.stdout.isatty()
    if on_terminal:
        kind = "each line is a prompt of its own" if conversation.plain else "/new begins another conversation"
        beside(f"as {conversation.user}; {kind}; /help lists commands")
    lines = from_terminal(conversation) if on_terminal else (line.rstrip("\n") for line in typed)
    with suppress(Leave):
        for line in whole_lines(lines):
            try:
                session.take(line)
            except PrlhfError as error:
                show.print_error(str(error))
    return {"questions": session.questions, "kept": session.kept}


class Session:
    """What each line does."""

    def __init__(self, conversation: Dialogue, choices: Path) -> None:
        self.conversation, self.choices = conversation, choices
        self.questions = self.kept = 0

    def take(self, line: str) -> None:
        """Reply a question, or do what a command says. Raises PrlhfError, and Leave."""
        if not line.strip():
            return
        if not line.startswith("/") or line.startswith("//"):
            pieces = self.conversation.ask(line.removeprefix("/") if line.startswith("//") else line)
            self.questions += 1
            self._write(pieces)
            return
        try:
            name, *words = shlex.split(line[1:])
        except ValueError as error:
            raise PrlhfError(f"cannot read '{line}': {error}", "close the quotes") from error
        does: Callable[..., None] | None = getattr(self, f"do_{name}", None)
        if does is None:
            raise PrlhfError(f"there is no command /{name}", "/help lists them")
        try:
            does(*words)
        except TypeError as error:
            if does.__code__.co_name not in str(error):
                raise
            raise PrlhfError(f"/{name} does not take {len(words)} words", "/help says what it takes") from error

    def do_user(self, name: str) -> None:
        """Continue as somebody else."""
        self.conversation.user = self.conversation.known(name)
        beside(f"as {name}")

    def do_users(self) -> None:
        """List who the run knows."""
        known = list(self.conversation.readers)
        beside(", ".join(known[:GROUP]) + (f", … ({len(known)} in all)" if len(known) > GROUP else ""))

    def do_regenerate(self) -> None:
        """Write another answer."""
        self._write(self.conversation.again())
        beside(f"answer {len(self.conversation.answers)}; /choose keeps one")

    def do_compare(self, name: str) -> None:
        """Show the newest answer and one for `name` side by side."""
        from prlhf.progress import Interruptible

        with Interruptible() as stop, closing(self.conversation.again(name)) as pieces:
            for _ in pieces:
                if stop.asked:
                    break
        answers = self.conversation.answers
        shown = list(enumerate(answers, start=1))[-2:]
        typer.echo("\n".join(side_by_side(shown, shutil.get_terminal_size().columns)))

    def do_choose(self, number: str, name: str | None = None) -> None:
        """Keep a choice."""
        if not number.isdecimal():
            raise PrlhfError(f"'{number}' is not the number of an answer", "write it as in /choose 1")
        rows = self.conversation.choose(int(number), self.choices, name)
        self.kept += len(rows)
        beside(f"{self.choices}: {len(rows)} of {rows[0]['user_id']}")

    def do_save(self, file: str) -> None:
        """Write what was said."""
        self.conversation.save(Path(file).expanduser())
        beside(file)

    def do_new(self) -> None:
        """Begin again."""
        self.conversation.new()

    def do_help(self) -> None:
        """List the commands."""
        beside(HELP)

    def do_quit(self) -> None:
        """Leave."""
        raise Leave

    def _write(self, pieces: Generator[str, None, None]) -> None:
        """Show an answer as it comes; Ctrl-C stops it, and what is there stays."""
        from prlhf.progress import Interruptible

        stopped = False
        with Interruptible() as stop, closing(pieces):
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
                if stop.asked:
                    stopped = True
                    break
        sys.stdout.write("\n")
        sys.stdout.flush()
        if stopped:
            beside("stopped")


def beside(line: str) -> None:
    """Show what is not an answer."""
    typer.echo(line, err=True)


def side_by_side(answers: list[tuple[int, Reply]], width: int) -> list[str]:
    """The lines of answers in columns, each with its number and who it is for."""
    if len(answers) == 1:
        return [f"{answers[0][0]}: {answers[0][1].user}", answers[0][1].text]
    column = max(16, (width - 3) // 2)

    def lines(number: int, answer: Reply) -> list[str]:
        paragraphs = [textwrap.wrap(line, column) or [""] for line in answer.text.strip().split("\n")]
        return [f"{number}: {answer.user}", "-" * column, *(line for lines in paragraphs for line in lines)]

    left, right = (lines(number, answer) for number, answer in answers)
    return [f"{a:<{column}} | {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]


# ---- what is typed ----


def whole_lines(lines: Iterator[str]) -> Iterator[str]:
    r"""Lines, of which one that ends in \ continues in the next."""
    held: list[str] = []
    for line in lines:
        held.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def from_terminal(conversation: Dialogue) -> Iterator[str]:
    """Lines typed with editing, history and completion, until Ctrl-D. Ctrl-C clears a line."""
    with history(conversation):
        while True:
            try:
                yield input(f"{conversation.user}> ")
            except EOFError:
                typer.echo("", err=True)
                return
            except KeyboardInterrupt:
                typer.echo("", err=True)


@contextmanager
def history(conversation: Dialogue) -> Iterator[None]:
    """What was typed before, by the arrow keys, and the names of commands and users, by Tab."""
    import readline

    from prlhf.files import cache_folder

    file = cache_folder() / "chat_history"
    with suppress(OSError):
        readline.read_history_file(file)
    names = [f"/{name.removeprefix('do_')}" for name in dir(Session) if name.startswith("do_")]

    def complete(begun: str, state: int) -> str | None:
        known = [*names, *conversation.readers] if readline.get_line_buffer().startswith("/") else []
        return next((name for i, name in enumerate(n for n in known if n.startswith(begun)) if i == state), None)

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(file)
