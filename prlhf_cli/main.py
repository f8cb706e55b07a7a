"""The `prlhf` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

from prlhf import __version__
from prlhf_cli import garbage, show
from prlhf_cli.usage import OneLine, override

COMMANDS = (  # a module for each
    "prep", "data", "train", "runs", "adapt", "users", "generate", "chat", "serve", "feedback", "judge", "sweep",
    "export", "push", "demo", "recipes", "env",
)  # fmt: skip


class Commands(Mapping[str, Any]):
    """The commands; each is built on first use, so that help does not wait for the options of the others."""

    @override
    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        return _command(name)

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    @override
    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _command(name: str) -> Any:
    return import_module(f"prlhf_cli.{name}").command.build(name)


class Group(OneLine):
    """The group of all commands."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs | {"commands": {}})
        self.commands: Any = Commands()

    @override
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """The names of the commands."""
        return list(COMMANDS)

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write a line for each command, without building it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, import_module(f"prlhf_cli.{name}").command.about) for name in COMMANDS])


app = typer.Typer(
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich takes longer to import than everything else
    help="Personalized language models from personalized human feedback (P-RLHF, arXiv 2402.05133).\n\n"
    "prep → train → generate → judge; sweep repeats train over a space of settings; export writes a person for "
    "other programs; serve answers them over HTTP; demo does all of it without a network.",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Set up what all commands share."""
    if sys.platform == "win32":
        show.print_error("prlhf runs on Linux and macOS; on Windows, use it within WSL")
        raise typer.Exit(2)
    garbage.seldom()


if __name__ == "__main__":
    app()
