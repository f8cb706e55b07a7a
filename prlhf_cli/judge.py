"""`prlhf judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prlhf_cli import show


def command(
    responses: Annotated[list[Path] | None, typer.Argument(help="A.jsonl and B.jsonl, as written by generate.")] = None,
    judge: Annotated[str | None, typer.Option(help="rule:shorter, rule:longer or reward:RUN.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Judge this run on held-out comparisons instead.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="With --checkpoint: the prepared data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: judged).")] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's base model is now, if it has moved.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the base model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the bootstrap and of the shuffled control.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe (a file, or a shipped one's name) whose `judge` section to use.")
    ] = None,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Win-rates of A against B, or a checkpoint's accuracy on held-out comparisons; 95 % intervals by user.

    prlhf judge personalized.jsonl vanilla.jsonl --judge rule:shorter --out judged

    prlhf judge --checkpoint runs/demo --dataset data/demo
    """
    flags = {"judge": judge, "out": out, "seed": seed, "model": model, "trust_remote_code": trust_remote_code}

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import JudgeConfig, load_recipe, resolve
        from prlhf.errors import PrlhfError

        config = resolve(JudgeConfig, load_recipe(recipe).get("judge", {}), flags)
        if checkpoint is not None:
            if dataset is None or responses:
                raise PrlhfError("--checkpoint takes --dataset and no response files", "add --dataset FOLDER")
            from prlhf.judge.accuracy import judge_checkpoint

            return judge_checkpoint(checkpoint, dataset, config, bars)
        if responses is None or len(responses) != 2:
            raise PrlhfError(f"{len(responses or [])} response files given", "give two: A.jsonl and B.jsonl")
        from prlhf.judge.run import judge_responses

        return judge_responses(*responses, config, bars)

    show.run(work, lambda result: _show_accuracy(result) if "readings" in result else show_wins(result), as_json)


def _show_accuracy(result: dict[str, Any]) -> None:
    rows = [(name, show.interval(reading)) for name, reading in result["readings"].items()]
    show.table(f"{result['run']} on {result['dataset']}", ["read as", "accuracy [95 %]"], rows)
    users = [
        (user, show.percent(accuracy), show.percent(result["generic_by_user"][user]))
        for user, accuracy in list(result["accuracy_by_user"].items())[:20]
    ]
    show.table("by user", ["user", "as the user", "as generic"], users)


CONVENTION_NAMES = {
    "tie_wins": "tie counts for both (PRISM)",
    "tie_loses": "tie is no win (P-SOUPS)",
    "tie_half": "tie is half a win",
}


def show_wins(result: dict[str, Any]) -> None:
    show.say(f"A {result['a']}\nB {result['b']}")
    show.say(f"{result['judge']}: {result['wins']} wins, {result['ties']} ties, {result['losses']} losses of A")
    rows = [
        (CONVENTION_NAMES[name], show.interval(result["per_sample"][name]), show.interval(result["per_user"][name]))
        for name in CONVENTION_NAMES
    ]
    show.table("win-rate of A [95 %]", ["convention", "per sample", "per user"], rows)
