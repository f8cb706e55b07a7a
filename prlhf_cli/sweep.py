"""`prlhf sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import Trials


def show_trials(result: Trials) -> None:
    """Show all trials, and how much of the reference they shared."""
    keys, shared = list(result.best["point"]), result.summary()["shared"]
    rows = [
        (trial["trial"], *(trial["point"][key] for key in keys), trial["status"], trial["error"] or trial["value"])
        for trial in result.trials
    ]
    show.table(f"{result.out}, best: {result.best['trial']}", ["trial", *keys, "status", result.metric], rows)
    before, within = shared["before_trials"], shared["in_trials"]
    line = f"reference: {before['computed']} computed, {before['cached']} from the cache, once for all trials"
    if within["computed"] is not None:
        line += f"; by the trials {within['computed']} computed, {within['cached']} from the cache"
    show.say(line)
    show.say(f"see {result.out}/report.html; train the best again with --recipe {result.out}/best.yaml")


@options.of("sweep", "cluster", show=show_trials, sets=("train", "generate", "judge", "sweep", "cluster"))
def command(
    typed: options.Typed,
    judge: Annotated[
        str | None, typer.Option(help="For judge/…: rule:longer, rule:shorter, oracle:DATASET or reward:RUN.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the sweep in --out; options that are given change it.")
    ] = False,
) -> Trials:
    """Train at many points of a space of settings, several at a time on Ray, and rank them.

    prlhf sweep --recipe tldr --space alpha=0.1:0.9 --space user-tokens=1,5,10,20 --trials 20

    prlhf sweep --recipe demo --space alpha=0,0.5,1 --out sweeps/alpha

    prlhf sweep --recipe demo --space lr=1e-5:1e-3:log --trials 12 --search optuna --asha --set eval_every=25

    prlhf sweep --recipe demo-profiles --space alpha=0.2,0.8 --metric judge/winrate --judge oracle:data/demo-profiles

    prlhf sweep --resume --out sweeps/alpha
    """
    from prlhf.api import sweep

    sections = {stage: dict(typed.settings[stage]) for stage in ("train", "generate", "judge")}
    if judge is not None:
        sections["judge"]["judge"] = judge
    return sweep(
        recipe=typed.recipe,
        sections=sections,
        cluster=typed.settings["cluster"],
        resume=resume,
        command=show.command_line(),
        display=show.leaderboard(),
        progress=typed.progress,
        **typed.settings["sweep"],
    )
