"""The `prlhf` command."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prlhf import __version__
from prlhf_cli import demo, env, garbage, generate, judge, prep, recipes, show, sweep, train
from prlhf_cli.usage import OneLine

app = typer.Typer(
    cls=OneLine,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich takes longer to import than all the rest
    help="Personalized language models from personalized human feedback (P-RLHF, arXiv 2402.05133).\n\n"
    "prep → train → generate → judge; sweep repeats train over a space of settings; demo does all of it "
    "without a network.",
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


for module in (prep, train, generate, judge, sweep, demo, recipes, env):
    app.command(module.__name__.rpartition(".")[2])(module.command)


if __name__ == "__main__":
    app()
