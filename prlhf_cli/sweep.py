"""`prlhf sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf_cli import show


def command(
    space: Annotated[list[str], typer.Option(help="key=value,value,… over any train key. Repeatable.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe (a file, or a shipped one's name) whose `train` section the trials share."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value that the trials share. Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("sweep"),
    metric: Annotated[str, typer.Option(help="What to rank trials by.")] = "eval/accuracy_macro",
    mode: Annotated[Literal["max", "min"], typer.Option(help="Whether more or less is better.")] = "max",
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Train every point of a grid, one after another, and rank them. A rerun repeats no finished trial.

    prlhf sweep --recipe recipes/demo.yaml --space alpha=0.2,0.5 --space user-tokens=1,10 --out sweeps/alpha
    """

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import load_recipe, parse_overrides
        from prlhf.data import locate
        from prlhf.sweep.grid import run_grid
        from prlhf.sweep.space import configs, grid, parse_space

        parsed = parse_space(space)
        sections = load_recipe(recipe)
        base = sections.get("train", {}) | parse_overrides(set_, "train")
        base["dataset"] = str(locate(base.get("dataset", "demo"), sections, bars))
        configs(base, grid(parsed))  # refuse a bad point before the heavy imports
        from prlhf.sweep.training import train_trial

        return run_grid(base, parsed, out, train_trial, metric, mode, bars)

    show.run(work, _show, as_json)


def _show(result: dict[str, Any]) -> None:
    keys = list(result["best"]["point"])
    rows = [
        (trial["trial"], *(trial["point"][key] for key in keys), trial["status"], trial["error"] or trial["value"])
        for trial in result["trials"]
    ]
    show.table(f"{result['out']}, best: {result['best']['trial']}", ["trial", *keys, "status", result["metric"]], rows)
