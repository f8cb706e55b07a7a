"""`prlhf judge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prlhf_cli import show

if TYPE_CHECKING:
    from prlhf.results import Result

LLM = "Judge llm: a language model"
NO_KEYS = (
    "responses",
    "checkpoint",
    "show_prompt",
    "dry_run",
    "recipe",
    "set_",
    "as_json",
    "extra_body",
)  # not of the recipe


def command(
    responses: Annotated[list[Path] | None, typer.Argument(help="A.jsonl and B.jsonl, as written by generate.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="rule:shorter, rule:longer, reward:RUN, oracle:DATASET, llm or llm:MODEL; several with commas "
            "between, which also says how far they agree. Required, but for --checkpoint."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Judge this run on held-out comparisons instead.")] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="The prepared data set: of --checkpoint (default: the run's), or the one that says who the users are."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Prepared data: how often does the judge choose as people did there? With or without A and B."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Judge, and calibrate on, at most N pairs each, drawn by the seed.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: judged).")] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The server's name for the model.", rich_help_panel=LLM)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server (default: $OPENAI_BASE_URL, else OpenAI's).", rich_help_panel=LLM),
    ] = None,
    api_version: Annotated[
        str | None,
        typer.Option(
            help="Azure: the version of its API; --base-url is the resource, --judge-model the deployment.",
            rich_help_panel=LLM,
        ),
    ] = None,
    protocol: Annotated[
        Literal["role-play", "profile", "plain"] | None,
        typer.Option(help="What the judge is told (default: what makes most of the data set).", rich_help_panel=LLM),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(help="A Jinja file in place of the protocol's prompt.", rich_help_panel=LLM)
    ] = None,
    order: Annotated[
        Literal["both", "random", "ab"] | None,
        typer.Option(help="Which response stands first; both asks twice (default: both).", rich_help_panel=LLM),
    ] = None,
    max_answer_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens an answer may have, thoughts included (default: 300). One that is cut off is asked for once "
            "more with 4 times as many, 4096 at least.",
            rich_help_panel=LLM,
        ),
    ] = None,
    extra_body: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value to send with each request, as in reasoning_effort=low. Repeatable.", rich_help_panel=LLM
        ),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            help="What the server does not take, by commas: response_format, json_schema, temperature, seed, "
            "max_completion_tokens (max_tokens is sent), max_tokens, system. What it refuses is left out anyway.",
            rich_help_panel=LLM,
        ),
    ] = None,
    show_prompt: Annotated[
        int | None, typer.Option(help="Print the messages of the N-th comparison, send nothing.", rich_help_panel=LLM)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count calls, tokens and cost, send nothing.", rich_help_panel=LLM)
    ] = False,
    concurrency: Annotated[int | None, typer.Option(help="Calls at a time (default: 8).", rich_help_panel=LLM)] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="At most so many calls a minute.", rich_help_panel=LLM)
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a call may take (default: 120).", rich_help_panel=LLM)
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Of a call that a busy server did not answer (default: 6).", rich_help_panel=LLM)
    ] = None,
    max_wait: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a server may ask to wait; if it asks for more, stop (default: 300).", rich_help_panel=LLM
        ),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="YAML of dollars a million tokens (default: shipped).", rich_help_panel=LLM)
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Maximum cost of this run, in US dollars.", rich_help_panel=LLM)
    ] = None,
    max_calls: Annotated[int | None, typer.Option(help="Stop after so many calls.", rich_help_panel=LLM)] = None,
    batch: Annotated[
        bool | None,
        typer.Option("--batch/--no-batch", help="By the provider's Batch API: cheaper, later.", rich_help_panel=LLM),
    ] = None,
    skip_long: Annotated[
        bool | None,
        typer.Option("--skip-long/--no-skip-long", help="With --checkpoint: leave out and count rows that do not fit."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where the run's base model is now, if it has moved.")] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code/--no-trust-remote-code", help="Run code that comes with the base model."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the bootstrap, of random orders, of --limit and of the shuffled control."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe (a file, or a shipped one's name) whose `judge` section to use.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key=value of a recipe. Repeatable.")
    ] = None,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Win-rates of A against B, a judge's calibration, or a checkpoint's accuracy; 95 % intervals by user.

    prlhf judge personalized.jsonl vanilla.jsonl --judge rule:shorter --out judged

    prlhf judge personalized.jsonl vanilla.jsonl --judge llm --judge-model gpt-4o --dataset data/psoups --dry-run

    prlhf judge --calibrate data/prism --judge llm --judge-model NAME --base-url http://localhost:8000/v1 --limit 200

    prlhf judge --checkpoint runs/demo
    """
    flags = {key: value for key, value in locals().items() if key not in NO_KEYS}

    def work(bars: show.Bars) -> Result | dict[str, list[Result]]:
        from prlhf.config import JudgeConfig, load_recipe, parse_override, parse_overrides, resolve
        from prlhf.errors import PrlhfError

        section = load_recipe(recipe).get("judge", {})
        given = {"extra_body": dict(parse_override(text, "extra_body") for text in extra_body)} if extra_body else {}
        config = resolve(JudgeConfig, section, parse_overrides(set_, "judge"), flags, given)
        if checkpoint is not None:
            if responses:
                raise PrlhfError("--checkpoint takes no response files", "leave out --checkpoint, or the files")
            if show_prompt is not None or dry_run:
                option = "--dry-run" if dry_run else "--show-prompt"
                raise PrlhfError(f"{option} is not used by --checkpoint", "leave it out")
            from prlhf.judge.accuracy import judge_checkpoint

            return judge_checkpoint(checkpoint, config.dataset, config, bars)
        if config.skip_long:
            raise PrlhfError("skip_long is for the comparisons of --checkpoint", "leave out --skip-long")
        if len(responses or []) != 2 and (responses or config.calibrate is None):
            raise PrlhfError(f"{len(responses or [])} response files given", "give two: A.jsonl and B.jsonl")
        from prlhf.judge import run

        a, b = responses if responses else (None, None)
        if show_prompt is not None:
            return {"calls": [*run.shown_prompt(a, b, config, show_prompt)]}
        if dry_run:
            return {"plan": [*run.dry_run(a, b, config)]}
        if a is None or b is None:
            return run.calibrate_judges(config, bars, show.command_line())
        return run.judge_responses(a, b, config, bars, show.command_line())

    show.run(work, _show, as_json)


def _show(result: Result | dict[str, list[Result]]) -> None:
    from prlhf.results import Calibrations, CheckpointAccuracy, Judgement

    if isinstance(result, dict):
        ((kind, found),) = result.items()
        summaries = [one.summary() for one in found]
        _show_calls(summaries) if kind == "calls" else _show_plan(summaries)
    elif isinstance(result, CheckpointAccuracy):
        _show_accuracy(result.summary())
    else:
        assert isinstance(result, Judgement | Calibrations)
        if isinstance(result, Judgement):
            show.say(f"A {result.a}\nB {result.b}")
            for name, rates in result.by_judge.items():
                _show_wins(name, rates.summary())
        _show_calibration({name: one.summary() for name, one in result.calibration.items()})
        _show_agreement(result.agreement)


def _show_calls(calls: list[dict[str, Any]]) -> None:
    if not calls:
        show.say("both responses are the same: a tie, nobody is asked")
    for call in calls:
        show.say(f"===== {'A' if call['order'] == 'ab' else 'B'} first =====")
        for message in call["messages"]:
            show.say(f"--- {message['role']} ---\n{message['content']}\n")


def _show_plan(plan: list[dict[str, Any]]) -> None:
    rows = [
        (
            one["model"],
            one["protocol"],
            f"{one['calls']:,} ({one['known']:,} known)",
            f"{one['prompt_tokens']:,} + {one['completion_tokens']:,}",
            "no price: see --prices" if one["cost"] is None else f"${one['cost']:.4f} (${one['cost_at_most']:.4f})",
        )
        for one in plan
    ]
    columns = ["model", "protocol", "calls", "tokens", "cost (at most)"]
    show.table("nothing was sent; tokens are estimates", columns, rows)


def _show_accuracy(result: dict[str, Any]) -> None:
    rows = [(name, show.interval(reading)) for name, reading in result["readings"].items()]
    show.table(f"{result['run']} on {result['dataset']}", ["read as", "accuracy [95 %]"], rows)
    users = [
        (user, show.percent(accuracy), show.percent(result["generic_by_user"][user]))
        for user, accuracy in list(result["accuracy_by_user"].items())[:20]
    ]
    show.table("by user", ["user", "as the user", "as generic"], users)


def _show_wins(judge: str, result: dict[str, Any]) -> None:
    from prlhf.judge.statistics import CONVENTION_NAMES

    show.say(f"{judge}: {result['wins']} wins, {result['ties']} ties, {result['losses']} losses of A")
    rows = [
        (CONVENTION_NAMES[name], show.interval(result["per_sample"][name]), show.interval(result["per_user"][name]))
        for name in CONVENTION_NAMES
    ]
    rows.append(("at equal length", show.interval(result["length_controlled"]), ""))
    show.table("win-rate of A [95 %]", ["convention", "per sample", "per user"], rows)
    if result["significance"]["note"]:
        show.say(result["significance"]["note"])
    if missing := result["unparsed"]["pairs"]:
        show.say(f"{missing} pairs have no verdict and are in no rate")
    if bias := result["position_bias"]:
        show.say(
            f"first place chosen in {show.percent(bias['first'])} of {bias['calls_that_chose']} calls; "
            f"{bias['inconsistent']} of {bias['pairs_in_both_orders']} pairs were judged differently in the other order"
        )


def _show_calibration(found: dict[str, Any]) -> None:
    if found:
        rows = [
            (name, show.interval(one["accuracy"]), one["right"], one["ties"], one["wrong"], one["unparsed"])
            for name, one in found.items()
        ]
        columns = ["judge", "accuracy [95 %]", "right", "ties", "wrong", "unparsed"]
        show.table("calibration: does it choose as people did?", columns, rows)


def _show_agreement(found: list[dict[str, Any]]) -> None:
    if found:
        rows = [
            (
                " and ".join(one["judges"]),
                one["pairs"],
                show.percent(one["same"]),
                "-" if one["kappa"] is None else one["kappa"],
            )
            for one in found
        ]
        show.table("agreement", ["judges", "pairs", "same verdict", "kappa"], rows)
