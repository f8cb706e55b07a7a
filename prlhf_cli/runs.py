"""`prlhf runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import RunComparison, RunDetails, RunList, RunSummary

COLUMNS = ["name", "state", "objective", "data", "model", "user model", "steps", "held out"]


def show_runs(found: RunList | RunDetails | RunComparison) -> None:
    """Show a table of runs, one run, or several side by side."""
    from prlhf.results import RunComparison, RunDetails

    if isinstance(found, RunDetails):
        show_one(found)
    elif isinstance(found, RunComparison):
        show_comparison(found)
    else:
        show.table(", ".join(map(str, found.folders)), COLUMNS, [row_of(run) for run in found.runs], texts=6)
        for fault in found.faults:
            show.say(f"not read: {fault}")
        if found.others:
            show.say(f"without a run: {', '.join(one.name for one in found.others)}")


def row_of(run: RunSummary) -> tuple[object, ...]:
    """A run in a table; data and model by the last part of their paths."""
    data, model = Path(run.dataset).name, Path(run.model).name if run.model else "-"
    kept = "" if run.best_step is None else f", best {run.best_step}"
    user_model = "one adapter each" if run.per_user else run.user_model or "-"
    return run.name, run.state, run.objective, data, model, user_model, f"{run.steps}{kept}", score_of(run)


def score_of(run: RunSummary) -> str:
    """The accuracy of held-out comparisons, or the likelihood of held-out responses."""
    name, value = run.score or ("", None)
    return f"{value:.3f} nats/token" if name == "nats_per_token" else show.percent(value)


def show_one(run: RunDetails) -> None:
    """Show a run with its evaluations and users."""
    show.table(str(run.run), COLUMNS, [row_of(run)], texts=6)
    names = [name for name in run.scores if all(name in row for row in run.evaluations)]
    rows = [(int(row["step"]), *(row[name] for name in names)) for row in run.evaluations[-10:]]
    show.table("evaluations", ["step", *(name.replace("_", " ") for name in names)], rows, texts=0)
    users = [
        (
            user,
            show.percent(one["accuracy"]),
            show.percent(one["generic"]),
            "-" if one["margin"] is None else one["margin"],
        )
        for user, one in list(run.users.items())[:20]
    ]
    if users:
        show.table("held-out comparisons", ["user", "as the user", "as generic", "margin"], users)


def show_comparison(found: RunComparison) -> None:
    """Show the settings of runs that differ, and the results of all."""
    names = ["", *(run.name for run in found.runs)]
    show.table("settings that differ", names, [(key, *map(cell, row)) for key, row in found.settings.items()])
    show.table("results", names, [(key.replace("_", " "), *map(cell, row)) for key, row in found.results.items()])


def cell(value: Any) -> object:
    """A value in a table."""
    return "-" if value is None else value


@options.of(show=show_runs)
def command(
    _typed: options.Typed,
    action: Annotated[
        Literal["list", "show", "compare"],
        typer.Argument(help="list: a table of all; show: one with its evaluations; compare: several side by side."),
    ],
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")],
    html: Annotated[Path | None, typer.Option("--html", help="Write a page, with show and compare.")] = None,
) -> RunList | RunDetails | RunComparison:
    """List the runs of a folder, show one, or compare settings and results of several.

    prlhf runs list runs

    prlhf runs show runs/demo --html demo.html

    prlhf runs compare runs/demo runs/demo2 --html compared.html
    """
    from prlhf import api

    if action == "compare":
        return api.compare_runs(*folders, html=html)
    if action == "show":
        if len(folders) > 1:
            raise PrlhfError(f"show takes one run, got {len(folders)}", "see `prlhf runs compare`")
        return api.show_run(folders[0], html=html)
    if html:
        raise PrlhfError(f"--html {html} goes with show and compare", "leave it out, or see `prlhf runs compare`")
    return api.list_runs(*folders)
