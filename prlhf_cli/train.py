"""`prlhf train`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import garbage, options, show

if TYPE_CHECKING:
    from prlhf.results import Run, TrainPlan


def show_result(result: Run | TrainPlan) -> None:
    """Show a finished run, or the plan of one."""
    from prlhf.results import TrainPlan

    if isinstance(result, TrainPlan):
        show_plan(result)
        return
    if result.pushed:
        show.say(f"pushed: {result.pushed}")
    if result.objective == "sft":
        show_sft(result)
    else:
        show_run(result)


def show_run(run: Run) -> None:
    """Show the speed of a run, and the accuracy of each user."""
    more, scores = run.summary(), run.summary().get("eval")
    unit = "prompts" if run.objective in ("grpo", "rloo") else "comparisons"
    show.say(f"{run.run}: {run.steps} steps, {more[f'{unit}_per_second']:.2f} {unit}/s; see report.html there")
    if not scores:
        return
    rows = [
        (user, show.percent(accuracy), show.percent(scores["generic_by_user"][user]), scores["margin_by_user"][user])
        for user, accuracy in list(scores["accuracy_by_user"].items())[:20]
    ]
    means = [show.percent(scores[f"accuracy_{name}"]) for name in ("macro", "generic")]
    rows += [("macro average", *means, scores["margin_mean"])]
    rows += [("worst tenth", show.percent(scores["accuracy_worst_tenth"]), "", "")]
    if scores["accuracy_seen"] is not None and scores["accuracy_unseen"] is not None:
        rows += [(f"{kind} users", show.percent(scores[f"accuracy_{kind}"]), "", "") for kind in ("seen", "unseen")]
    reward = "reward" if run.objective == "rm" else "implicit-reward"
    show.table(f"{reward} accuracy, held-out comparisons", ["user", "as the user", "as generic", "margin"], rows)


def show_sft(run: Run) -> None:
    """Show the speed of supervised fine-tuning, and the likelihood before and after."""
    more, scores = run.summary(), run.summary().get("eval")
    show.say(f"{run.run}: {run.steps} steps, {more['demonstrations_per_second']:.2f} responses/s")
    if scores:
        names = ("nats_per_token", "nats_per_response")
        rows = [(name.replace("_", " "), scores[f"{name}_before"], scores[name]) for name in names]
        show.table("negative log-likelihood of held-out responses", ["", "before", "after"], rows)
    show.say(f"next: prlhf train --model {run.run}/model --dataset {run.dataset}")


def show_plan(result: TrainPlan) -> None:
    """Show a plan: sizes, steps and memory."""
    plan: dict[str, Any] = result.summary()
    kind, settings = plan["settings"]["objective"], plan["settings"]
    unit = "demonstrations" if kind == "sft" else "comparisons"
    whose = "memory of a worker" if plan["workers"] else "memory"
    there = plan["available_gib"]
    rows: list[tuple[str, object]] = [
        ("objective, user model", kind if kind == "sft" else f"{kind}, {settings['user_model']}"),
        ("base", settings["model"]),
        ("device, precision", f"{plan['device']}, {plan['precision']}"),
        *([("workers", f"{plan['workers']}, {plan['parallel'] or 'alone'}")] if plan["workers"] else []),
        (f"{unit}, held out", f"{plan['train']:,}, {plan['eval']:,}"),
        ("users", f"{plan['users']:,}"),
        (f"steps of {plan['rows_per_step']} {'prompts' if kind in ('grpo', 'rloo') else unit}", f"{plan['steps']:,}"),
        ("tokens, mean and most", f"{plan['tokens_mean']:.0f}, {plan['tokens_max']} of {plan['tokens_allowed']}"),
        *((f"{what} cut", count) for what, count in plan["cut"].items() if count),
        *((f"left out, {why.replace('_', ' ')}", n) for why, n in plan["left_out"]["train"].items() if n),
        *([("responses read before the first step", f"{n:,}")] if (n := plan["read_before"]) else []),
        *((f"parameters: {part.replace('_', ' ')}", f"{n:,}") for part, n in plan["parameters"].items() if n),
        *((f"{whose}: {part}", f"{size:.2f} GiB") for part, size in plan["memory_gib"].items()),
        *((f"peak with {flag}", f"{size:.2f} GiB") for flag, size in plan["peak_gib_with"].items()),
        (f"memory of {plan['device']}", "unknown" if there is None else f"{there:.2f} GiB"),
    ]
    show.table(f"{plan['run']}: what `prlhf train` would do", ["what", "value"], rows)
    for line in plan["missing"]:
        show.say(f"note: {line}")
    show.say("nothing was trained or written; memory is an estimate")


@options.of("train", "cluster", show=show_result)
def command(
    typed: options.Typed,
    per_user: Annotated[
        bool, typer.Option("--per-user", help="A baseline for few users: one vanilla adapter for each, no user model.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the plan with steps and memory, train nothing."),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Upload the model to this repository of the hub at the end, OWNER/NAME."),
    ] = None,
) -> Run | TrainPlan:
    """Train user model and adapter together on comparisons with users.

    A policy by P-DPO or a reward model by P-RM; vanilla DPO and reward models with `--user-model uniform`.

    prlhf train --dataset tldr --user-model cluster --k 10

    prlhf train --recipe recipes/demo.yaml --lora-r 16 --out runs/demo

    prlhf train --objective rm --dataset demo

    prlhf train --objective online-dpo --reward runs/demo-rm-individual --dataset demo --out runs/online

    prlhf train --objective grpo --reward runs/demo-rm-individual --dataset demo --out runs/grpo

    prlhf train --objective sft --dataset demo --out runs/sft

    prlhf train --dry-run --recipe demo --out runs/demo2

    prlhf train --resume --out runs/demo

    prlhf train --dataset demo --workers 2 --out runs/two

    prlhf train --recipe tldr --workers 8 --ray-address auto --storage s3://bucket/runs --out runs/tldr8

    prlhf train --dataset demo --per-user --max-steps 100 --out runs/adapters

    prlhf train --dataset demo --out runs/demo --push-to-hub me/demo
    """
    if dry_run and (resume or per_user or push_to_hub):
        raise PrlhfError("--dry-run plans one new run", "leave out --resume, --per-user and --push-to-hub")
    recipe, cluster, settings = typed.sections(), typed.settings["cluster"], typed.settings["train"]
    from prlhf import start_training, upload
    from prlhf.results import Run, TrainPlan

    if dry_run:
        return TrainPlan.model_validate(start_training.plan_training(recipe, settings, cluster, typed.progress))
    garbage.spare_imports()
    work = partial(start_training.run_training, recipe, settings, cluster, resume, per_user, typed.progress)
    return Run.model_validate(upload.then_pushed(work, push_to_hub, per_user))
