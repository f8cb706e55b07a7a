"""`prlhf judge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import options, show

if TYPE_CHECKING:
    from prlhf.results import (
        Calibrations,
        CheckpointAccuracy,
        FewShotAccuracy,
        GeneralAbility,
        Judgement,
        JudgeMessages,
        JudgingPlan,
        WinRates,
    )

    Result = (
        Calibrations | CheckpointAccuracy | FewShotAccuracy | GeneralAbility | JudgeMessages | Judgement | JudgingPlan
    )

LLM = "Judge llm: a language model"


def show_result(result: Result) -> None:
    """Show what was judged, or what would be."""
    from prlhf.results import CheckpointAccuracy, FewShotAccuracy, GeneralAbility, JudgeMessages, JudgingPlan

    if isinstance(result, JudgeMessages):
        show_messages(result)
    elif isinstance(result, JudgingPlan):
        show_plan(result)
    elif isinstance(result, CheckpointAccuracy):
        show_accuracy(result)
    elif isinstance(result, FewShotAccuracy):
        show_few_shot(result)
    elif isinstance(result, GeneralAbility):
        show_general(result)
    else:
        show_judgement(result)


def show_judgement(result: Judgement | Calibrations) -> None:
    """Show the win-rates of each judge, how often it chooses as people did, and how far the judges agree."""
    from prlhf.results import Judgement

    if isinstance(result, Judgement):
        show.say(f"A {result.a}\nB {result.b}")
        for name, rates in result.by_judge.items():
            _show_wins(name, rates)
    if result.calibration:
        rows = [
            (name, show.interval(one.accuracy), one.right, one.ties, one.wrong, one.unparsed)
            for name, one in result.calibration.items()
        ]
        columns = ["judge", "accuracy [95 %]", "right", "ties", "wrong", "unparsed"]
        show.table("calibration: does it choose as people did?", columns, rows)
    if result.agreement:
        pairs = []
        for one in result.agreement:
            kappa = "-" if one["kappa"] is None else one["kappa"]
            pairs.append((" and ".join(one["judges"]), one["pairs"], show.percent(one["same"]), kappa))
        show.table("agreement", ["judges", "pairs", "same verdict", "kappa"], pairs)


def _show_wins(judge: str, rates: WinRates) -> None:
    from prlhf.judge.statistics import CONVENTION_NAMES

    show.say(f"{judge}: {rates.wins} wins, {rates.ties} ties, {rates.losses} losses of A")
    rows = [
        (CONVENTION_NAMES[name], show.interval(rates.per_sample[name]), show.interval(rates.per_user[name]))
        for name in CONVENTION_NAMES
    ]
    rows.append(("at equal length", show.interval(rates.length_controlled), ""))
    show.table("win-rate of A [95 %]", ["convention", "per sample", "per user"], rows)
    if rates.significance["note"]:
        show.say(rates.significance["note"])
    if missing := rates.unparsed["pairs"]:
        show.say(f"{missing:.0f} pairs have no verdict and are in no rate")
    if bias := rates.position_bias:
        show.say(
            f"first place chosen in {show.percent(bias['first'])} of {bias['calls_that_chose']} calls; "
            f"{bias['inconsistent']} of {bias['pairs_in_both_orders']} pairs were judged differently in the other order"
        )


def show_accuracy(result: CheckpointAccuracy) -> None:
    """Show a run's accuracy by who reads, and by user."""
    rows = [(name, show.interval(reading)) for name, reading in result.readings.items()]
    show.table(f"{result.run} on {result.dataset}", ["read as", "accuracy [95 %]"], rows)
    users = [
        (user, show.percent(accuracy), show.percent(result.generic_by_user[user]))
        for user, accuracy in list(result.accuracy_by_user.items())[:20]
    ]
    show.table("by user", ["user", "as the user", "as generic"], users)


def show_few_shot(result: FewShotAccuracy) -> None:
    """Show the accuracy of each reading by the number of choices."""
    names = list(result.by_choices[0].readings)
    rows = [
        (at.choices, *(show.interval(at.readings[name]) for name in names), show.percent(at.turned_over.rate))
        for at in result.by_choices
    ]
    show.say(f"{result.users} unseen users, {result.comparisons} choices; accuracy [95 %]")
    show.table(f"{result.run} on {result.dataset}", ["choices", *names, "turned over"], rows)


def show_general(result: GeneralAbility) -> None:
    """Show general ability of base, generic user and users, and how far each is from the base."""
    show.say(f"{result.run} on {result.general}: questions: {result.questions}, texts: {result.texts}")
    if result.chance is not None:
        show.say(f"right by chance: {show.percent(result.chance)}")
    named = {"base": result.base, "generic": "as generic", "users": "users, mean"}
    readers = {named[name]: one for name, one in result.readings.items()} | result.by_user
    measures = [name for name in ("acc", "acc_norm", "perplexity", "bits_per_byte") if name in result.readings["base"]]
    rows = []
    for reader, one in readers.items():
        against = one.get("against_base", {})
        rows.append(
            (reader, *(cell for name in measures for cell in (one[name]["value"], show.change(against.get(name)))))
        )
    columns = [column for name in measures for column in (name, "less the base [95 %]")]
    show.table("general ability", ["read as", *columns], rows)


def show_messages(found: JudgeMessages) -> None:
    """Show what the judge would be sent."""
    if not found.calls:
        show.say("both responses are the same: a tie without asking anybody")
    for call in found.calls:
        show.say(f"===== {'A' if call.order == 'ab' else 'B'} first =====")
        for message in call.messages:
            show.say(f"--- {message['role']} ---\n{message['content']}\n")


def show_plan(found: JudgingPlan) -> None:
    """Show the calls, tokens and cost of each judge."""
    rows = [
        (
            one.model,
            one.protocol,
            f"{one.calls:,} ({one.known:,} known)",
            f"{one.prompt_tokens:,} + {one.completion_tokens:,}",
            "no price: see --prices" if one.cost is None else f"${one.cost:.4f} (${one.cost_at_most:.4f})",
        )
        for one in found.plan
    ]
    columns = ["model", "protocol", "calls", "tokens", "cost (at most)"]
    show.table("nothing was sent; tokens are estimates", columns, rows)


@options.of("judge", show=show_result)
def command(
    typed: options.Typed,
    responses: Annotated[list[Path] | None, typer.Argument(help="A.jsonl and B.jsonl, as written by generate.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Judge this run on held-out comparisons instead.", rich_help_panel="What to judge"),
    ] = None,
    show_prompt: Annotated[
        int | None, typer.Option(help="Print the messages of the N-th comparison, send nothing.", rich_help_panel=LLM)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count calls, tokens and cost, send nothing.", rich_help_panel=LLM)
    ] = False,
) -> Result:
    """Win-rates of A against B, a judge's calibration, or a checkpoint's accuracy; 95 % intervals by user.

    prlhf judge personalized.jsonl vanilla.jsonl --judge rule:shorter --out judged

    prlhf judge personalized.jsonl vanilla.jsonl --judge llm --judge-model gpt-4o --dataset data/psoups --dry-run

    prlhf judge --calibrate data/prism --judge llm --judge-model NAME --base-url http://localhost:8000/v1 --limit 200

    prlhf judge --checkpoint runs/demo

    prlhf judge --checkpoint runs/demo --few-shot 1,2,4,8

    prlhf judge --checkpoint runs/demo --general arc.jsonl --general-users 3
    """
    from prlhf import api

    recipe, settings, progress = typed.sections(), typed.settings["judge"], typed.progress
    general = {**recipe.get("judge", {}), **settings}.get("general")
    if checkpoint is not None:
        if responses:
            raise PrlhfError("--checkpoint takes no response files", "leave out --checkpoint, or the files")
        if show_prompt is not None or dry_run:
            option = "--dry-run" if dry_run else "--show-prompt"
            raise PrlhfError(f"{option} is not used by --checkpoint", "leave it out")
        if general is not None:
            return api.judge_general(checkpoint, recipe=recipe, progress=progress, **settings)
        return api.judge_checkpoint(checkpoint, recipe=recipe, progress=progress, **settings)
    calibrated = {**recipe.get("judge", {}), **settings}.get("calibrate")
    if len(responses or []) != 2 and (responses or (calibrated is None and general is None)):
        raise PrlhfError(f"{len(responses or [])} response files given", "give two: A.jsonl and B.jsonl")
    a, b = responses or (None, None)
    if show_prompt is not None:
        return api.judge_messages(show_prompt, a, b, recipe=recipe, **settings)
    if dry_run:
        return api.plan_judging(a, b, recipe=recipe, **settings)
    made = {"command": show.command_line(), "progress": progress, "recipe": recipe, **settings}
    return api.judge(a, b, **made) if a and b else api.calibrate(**made)
