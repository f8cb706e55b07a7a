"""`prlhf demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import DemoFigure


def show_demo(result: DemoFigure) -> None:
    """Show the table of figure 3 and, unless it was quick, what was expected of it."""
    rows = [
        (
            row.label + (" (minority)" if row.kind == "minority" else ""),
            f"{row.words:.1f} ± {row.standard_error:.1f}",
            row.empty,
            show.percent(row.well_formed),
            show.percent(row.faithful),
            show.percent(row.accuracy),
            show.percent(row.vanilla_accuracy),
        )
        for row in result.rows
    ]
    columns = ["user", "words ± SE", "empty", "well-formed", "faithful", "accuracy", "vanilla's"]
    show.table(f"Figure 3 in miniature (NLL weight {result.nll})", columns, rows)
    if result.quick:
        show.say("quick: too little training for the paper's figures; `prlhf demo` measures them")
        show.say(f"picture: {result.figure}")
        return
    checks = [(c.name, c.value, c.target, "met" if c.met else "MISSED") for c in result.checks]
    show.table("expected", ["what", "measured", "target", ""], checks)
    show.say(f"picture: {result.figure}")


@options.of(show=show_demo)
def command(
    typed: options.Typed,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write (default: runs/demo; with --quick: runs/demo-quick).")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe with the demo's settings: a shipped name or a file (default: demo).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A miniature that takes under a minute and checks nothing of the paper.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of data, training and writing.")] = None,
) -> DemoFigure:
    """Section 5.1 of the paper in miniature, without a network, in a few minutes: train, generate, Figure 3.

    prlhf demo

    prlhf demo --quick

    prlhf demo --seed 1 --out runs/again
    """
    from prlhf.recipes import load_recipe, over

    if quick and recipe:
        raise PrlhfError(f"--quick has a recipe of its own, not {recipe}", "leave out --quick or --recipe")
    name = "demo-quick" if quick else "demo"
    seeds = {} if seed is None else {stage: {"seed": seed} for stage in ("prep", "train", "generate")}
    settings = over(load_recipe(recipe or name), seeds)
    from prlhf.demo.run import run_demo

    return run_demo(out or Path("runs") / name, settings, typed.progress, quick)
