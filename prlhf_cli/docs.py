"""The page of the command line: `python -m prlhf_cli.docs > docs/CLI.md`. A test compares the two."""

from __future__ import annotations

import os
import sys

from typer.testing import CliRunner

from prlhf_cli.main import app

COMMAND = "python -m prlhf_cli.docs > docs/CLI.md"
COMMANDS = [str(info.name) for info in app.registered_commands]


def help_of(*command: str) -> str:
    """A command's help as plain text of a fixed width, whatever the terminal."""
    plain = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None}
    result = CliRunner().invoke(app, [*command, "--help"], env=plain, prog_name="prlhf")
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").split("\n"))


def page() -> str:
    parts = [f"# The command line\n\nWritten by `{COMMAND}`.\n"]
    for command in [(), *((name,) for name in COMMANDS)]:
        title = " ".join(["prlhf", *command])
        parts.append(f"## {title}\n\n```text\n{help_of(*command)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    os.environ.pop("FORCE_COLOR", None)
    sys.stdout.write(page())
