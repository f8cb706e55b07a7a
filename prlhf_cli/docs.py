"""The page of the command line: `python -m prlhf_cli.docs > docs/CLI.md`. A test compares the two."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from prlhf_cli.main import COMMANDS, app

COMMAND = "python -m prlhf_cli.docs > docs/CLI.md"


def help_text(*command: str) -> str:
    """A command's help as plain text of a fixed width, whatever the terminal."""
    plain = {"COLUMNS": "100", "LINES": "50", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*command, "--help"], env=plain, prog_name="prlhf")
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").split("\n"))


def page() -> str:
    """docs/CLI.md: the help of every command."""
    parts = [f"# The command line\n\nWritten by `{COMMAND}`. [Settings](SETTINGS.md) has a table of all keys.\n"]
    for command in [(), *((name,) for name in COMMANDS)]:
        title = " ".join(["prlhf", *command])
        parts.append(f"## {title}\n\n```text\n{help_text(*command)}\n```\n")
    return "\n".join(parts)


def check_command(line: str) -> None:
    """Raise what typer raises where a documented command line would be refused; nothing is run."""
    _, name, *args = shlex.split(line, comments=True)
    group: Any = get_command(app)
    group.commands[name].make_context(name, args, parent=group.make_context("prlhf", [name]))


if __name__ == "__main__":
    sys.stdout.write(page())
