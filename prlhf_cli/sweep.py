"""`prlhf sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf_cli import cluster, show

OWN = ("trials", "metric", "mode", "search", "seed", "against", "asha", "grace", "reduction", "concurrent")
MACHINE = ("workers", "gpus_per_worker", "cpus_per_worker", "ray_address", "verbose")


def command(
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="key=0.1:0.9, key=1e-5:1e-3:log or key=value,value,… over any train key, or a key of generate as in "
            "generate.temperature=0.5:1. Repeatable."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe (a file, or a shipped one's name) with the sections that the trials share."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value that the trials share, of train, or generate.key=value. Repeatable."),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Points to sample (default: the whole grid).")] = None,
    search: Annotated[
        Literal["grid", "random", "optuna"] | None,
        typer.Option(help="How points are chosen (default: random with --trials, else grid)."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What to rank trials by; judge/winrate and others of judge/ by generating and judging at the end of "
            "a trial (default: eval/accuracy_macro)."
        ),
    ] = None,
    mode: Annotated[
        Literal["max", "min"] | None, typer.Option(help="Whether more or less is better (default: max).")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="judge/…: rule:longer, rule:shorter, oracle:DATASET or reward:RUN.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="judge/…: the responses to win against, a file, or base for the base's own (default: base)."),
    ] = None,
    asha: Annotated[
        bool | None, typer.Option("--asha/--no-asha", help="Stop trials that are behind at their evaluations.")
    ] = None,
    grace: Annotated[
        int | None, typer.Option(help="asha: steps before it looks at a trial (default: eval_every).")
    ] = None,
    reduction: Annotated[float | None, typer.Option(help="asha: the best 1 in this many go on (default: 3).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the points (default: 0).")] = None,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at a time (default: as many as there is room for).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers per trial; 0 is the trial's own process (default: 0).")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs of a trial, or of each of its workers (default: 1 where there are any).")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(help="CPUs of a trial, or of each of its workers (default: 1).")
    ] = None,
    ray_address: cluster.Address = None,
    verbose: cluster.Verbose = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: sweep).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out; options that are given change it.")
    ] = False,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Train at many points of a space of settings, several at a time on Ray, and rank them.

    prlhf sweep --recipe tldr --space alpha=0.1:0.9 --space user-tokens=1,5,10,20 --trials 20

    prlhf sweep --recipe demo --space alpha=0,0.5,1 --out sweeps/alpha

    prlhf sweep --recipe demo --space lr=1e-5:1e-3:log --trials 12 --search optuna --asha --set eval_every=25

    prlhf sweep --recipe demo-profiles --space alpha=0.2,0.8 --metric judge/winrate --judge oracle:data/demo-profiles

    prlhf sweep --resume --out sweeps/alpha
    """
    given = locals()

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import ClusterConfig, SweepConfig, load_recipe, resolve
        from prlhf.sweep.run import merged_space, with_sets

        folder = out or Path("sweep")
        source = str(folder / "recipe.yaml") if resume else recipe
        sections = with_sets(load_recipe(source), set_)
        if resume and recipe:
            sections = {**sections, **load_recipe(recipe)}
        if judge:
            sections = {**sections, "judge": {**sections.get("judge", {}), "judge": judge}}
        own = sections.get("sweep", {})
        flags = {key: given[key] for key in OWN} | {"out": out, "space": merged_space(own.get("space", {}), space)}
        config = resolve(SweepConfig, own, flags)
        machine = resolve(ClusterConfig, sections.get("cluster", {}), {key: given[key] for key in MACHINE})
        from prlhf.sweep.run import sweep

        return sweep(config, sections, machine, resume, bars, show.leaderboard(), show.command_line())

    show.run(work, _show, as_json)


def _show(result: dict[str, Any]) -> None:
    keys = list(result["best"]["point"])
    rows = [
        (trial["trial"], *(trial["point"][key] for key in keys), trial["status"], trial["error"] or trial["value"])
        for trial in result["trials"]
    ]
    show.table(f"{result['out']}, best: {result['best']['trial']}", ["trial", *keys, "status", result["metric"]], rows)
    before, within = result["shared"]["before_trials"], result["shared"]["in_trials"]
    line = f"reference: {before['computed']} computed, {before['cached']} from the cache, once for all trials"
    if within["computed"] is not None:
        line += f"; by the trials {within['computed']} computed, {within['cached']} from the cache"
    show.say(line)
    show.say(f"see {result['out']}/report.html; train the best again with --recipe {result['out']}/best.yaml")
