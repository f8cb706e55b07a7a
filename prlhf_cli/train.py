"""`prlhf train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf.errors import PrlhfError
from prlhf_cli import cluster, garbage, show

NO_KEYS = (
    "recipe",
    "set_",
    "template_option",
    "resume",
    "per_user",
    "dry_run",
    "as_json",
)  # options that are no keys of TrainConfig


def command(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="demo, demo-profiles, demo-crowd, tldr, psoups, prism, or a prepared folder (default: demo)."
        ),
    ] = None,
    objective: Annotated[
        Literal["dpo", "rm", "sft"] | None,
        typer.Option(help="dpo: a policy; rm: a reward model; sft: a base, without users (default: dpo)."),
    ] = None,
    user_model: Annotated[
        Literal["uniform", "individual", "cluster"] | None,
        typer.Option(help="uniform is vanilla DPO, or reward modelling (default: individual)."),
    ] = None,
    k: Annotated[int | None, typer.Option(help="cluster: number of clusters (default: 10).")] = None,
    user_tokens: Annotated[int | None, typer.Option(help="T_u, soft-prompt vectors per user (default: 10).")] = None,
    user_init: Annotated[
        Literal["zero", "vocabulary", "random"] | None,
        typer.Option(help="How users' embeddings start (default: vocabulary)."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the user's term, 0 to 1 (default: 0.5).")] = None,
    beta: Annotated[float | None, typer.Option(help="dpo: beta (default: 0.1).")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="dpo: sigmoid, sigmoid_norm, robust, exo_pair, hinge, ipo, sppo_hard, nca_pair, apo_zero, apo_down "
            "or discopop (default: sigmoid)."
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(help="Assumed share of flipped preferences, for losses that take it (default: 0)."),
    ] = None,
    nll: Annotated[
        float | None,
        typer.Option(help="dpo: weight of the NLL per chosen token; 0: as published (default: 0.5)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base: hub id, folder or .gguf file (default: by data set).")
    ] = None,
    full_finetune: Annotated[
        bool | None, typer.Option("--full-finetune/--no-full-finetune", help="Train all weights, no LoRA.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the adapter.")] = None,
    user_lr: Annotated[float | None, typer.Option(help="Learning rate of users and reward head.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Comparisons per forward pass.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Forward passes per optimizer step.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training comparisons.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimizer steps.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget of user tokens, text, prompt and response.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Cut longer prompts from their beginning.")] = None,
    skip_long: Annotated[
        bool | None, typer.Option("--skip-long/--no-skip-long", help="Leave out and count rows that do not fit.")
    ] = None,
    template_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the chat template, such as enable_thinking=false. Repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option(help="auto: bf16 on GPUs.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; 0: only at the end.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code/--no-trust-remote-code", help="Run code that comes with the base model."),
    ] = None,
    reference_cache: Annotated[
        bool | None,
        typer.Option(
            "--reference-cache/--no-reference-cache",
            help="dpo: whether the base's log-probs are kept on disk, for all runs on it. They are by default.",
        ),
    ] = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, wandb, … as in transformers.")] = None,
    per_user: Annotated[
        bool, typer.Option("--per-user", help="A baseline for few users: one vanilla adapter for each, no user model.")
    ] = False,
    workers: cluster.Workers = None,
    gpus_per_worker: cluster.Gpus = None,
    cpus_per_worker: cluster.Cpus = None,
    ray_address: cluster.Address = None,
    storage: cluster.Storage = None,
    parallel: Annotated[
        Literal["ddp", "fsdp"] | None,
        typer.Option(help="ddp: every worker has the whole model; fsdp: a shard of it (default: ddp)."),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(help="How many times to go on after workers are lost (default: 3).")
    ] = None,
    silence_minutes: Annotated[
        float | None,
        typer.Option(help="End a run whose workers say nothing for so many minutes; 0: never (default: 60)."),
    ] = None,
    verbose: cluster.Verbose = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe (a file, or a shipped one's name) whose `train` section to use.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key=value of a recipe. Repeatable.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder (default: runs/DATASET-USERMODEL, DATASET-rm-USERMODEL or DATASET-sft)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the plan with steps and memory, train nothing."),
    ] = False,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Train user model and adapter together on comparisons with users.

    A policy by P-DPO or a reward model by P-RM; vanilla DPO and reward models with `--user-model uniform`.

    prlhf train --dataset tldr --user-model cluster --k 10

    prlhf train --recipe recipes/demo.yaml --set lora_r=16 --out runs/demo

    prlhf train --objective rm --dataset demo

    prlhf train --objective sft --dataset demo --out runs/sft

    prlhf train --dry-run --recipe demo --out runs/demo2

    prlhf train --resume --out runs/demo

    prlhf train --dataset demo --workers 2 --out runs/two

    prlhf train --recipe tldr --workers 8 --ray-address auto --storage s3://bucket/runs --out runs/tldr8

    prlhf train --dataset demo --per-user --max-steps 100 --out runs/adapters
    """
    flags = {key: value for key, value in locals().items() if key not in NO_KEYS}

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import TrainConfig, load_recipe, parse_overrides, parse_template_options, resolve

        if dry_run and (resume or per_user):
            raise PrlhfError("--dry-run plans one new run", "leave out --resume and --per-user")
        flags["template_options"] = parse_template_options(template_option)
        own = dict(flags)
        # of a run to be resumed only its own recipe knows, which may have to be fetched from the storage
        where = cluster.config_of(load_recipe(recipe), {"workers": 1} if resume else {}, own)
        layers = [load_recipe(recipe).get("train", {}), parse_overrides(set_, "train"), own]
        config = resolve(TrainConfig, *(layers if not resume else [name_of_run(layer) for layer in layers]))
        if per_user:
            refuse_users(layers[1] | {key: value for key, value in own.items() if value is not None})
        if dry_run:
            return plan_of(
                config.model_copy(update={"out": config.folder}),
                load_recipe(recipe),
                bars,
                where if where.workers else None,
            )
        from prlhf.model.per_user import folder_for
        from prlhf.start_training import go_on, start

        garbage.spare_imports()
        if resume:
            folder = folder_for(config.dataset) if per_user and config.out is None else config.folder
            machine = {key: value for key, value in flags.items() if key not in own}
            return go_on(folder, layers, machine, per_user, load_recipe(recipe), bars)
        return start(config, where, per_user, load_recipe(recipe), bars)

    show.run(work, show_plan if dry_run else show_run, as_json)


def refuse_users(typed: dict[str, Any]) -> None:
    """With --per-user nothing that is typed may be about a user model: an adapter of one user has none."""
    from prlhf.applies import unused
    from prlhf.config import TrainConfig

    vanilla = {"user_model": "uniform", "user_tokens": 0, "user_text": False}
    needless = unused(TrainConfig.used, TrainConfig.model_validate(vanilla), typed)
    for key, value in typed.items():
        if key in needless or value != vanilla.get(key, value):
            raise PrlhfError(f"{key} = {value} is not used with --per-user", f"leave {key} out")


def name_of_run(layer: dict[str, Any]) -> dict[str, Any]:
    """What of the settings of a run that is resumed says where it is: the others fit its own settings, or do not."""
    return {key: value for key, value in layer.items() if key in ("out", "dataset", "objective", "user_model")}


def plan_of(config: Any, recipe: dict[str, Any], bars: show.Bars, cluster: Any = None) -> dict[str, Any]:
    """The plan of a run, on `cluster` (None: in this process).

    Data that training would prepare first is prepared for the moment, in a temporary folder.
    """
    from tempfile import TemporaryDirectory

    from prlhf.data import locate
    from prlhf.train.dry_run import plan
    from prlhf.train.memory import ALONE

    with TemporaryDirectory(prefix="prlhf-") as scratch:
        folder = locate(config.dataset, recipe, bars, Path(scratch), "--dataset ")
        found = plan(config.model_copy(update={"dataset": str(folder)}), bars, cluster or ALONE)
    if not folder.exists():
        found["settings"]["dataset"] = config.dataset
        found["missing"].append(f"the data set {config.dataset} is not prepared yet: training will do that first")
    return found


def show_run(results: dict[str, Any]) -> None:
    """Show what came out of a run: its speed, and the accuracy of each user."""
    if results.get("objective") == "sft":
        show_sft(results)
        return
    show.say(f"{results['run']}: {results['steps']} steps, {results['comparisons_per_second']:.2f} comparisons/s")
    scores = results.get("eval")
    if not scores:
        return
    rows = [
        (user, show.percent(accuracy), show.percent(scores["generic_by_user"][user]), scores["margin_by_user"][user])
        for user, accuracy in list(scores["accuracy_by_user"].items())[:20]
    ]
    rows += [
        (
            "macro average",
            show.percent(scores["accuracy_macro"]),
            show.percent(scores["accuracy_generic"]),
            scores["margin_mean"],
        ),
        ("worst tenth", show.percent(scores["accuracy_worst_tenth"]), "", ""),
    ]
    if scores["accuracy_seen"] is not None and scores["accuracy_unseen"] is not None:
        rows += [(f"{kind} users", show.percent(scores[f"accuracy_{kind}"]), "", "") for kind in ("seen", "unseen")]
    reward = "reward" if results.get("objective") == "rm" else "implicit-reward"
    show.table(f"{reward} accuracy, held-out comparisons", ["user", "as the user", "as generic", "margin"], rows)


def show_sft(results: dict[str, Any]) -> None:
    """Show what came out of supervised fine-tuning."""
    show.say(f"{results['run']}: {results['steps']} steps, {results['demonstrations_per_second']:.2f} responses/s")
    scores = results.get("eval")
    if scores:
        names = ("nats_per_token", "nats_per_response")
        rows = [(name.replace("_", " "), scores[f"{name}_before"], scores[name]) for name in names]
        show.table("negative log-likelihood of held-out responses", ["", "before", "after"], rows)
    show.say(f"next: prlhf train --model {results['run']}/model --dataset {results['dataset']}")


def show_plan(plan: dict[str, Any]) -> None:
    """Show a plan: sizes, steps and the memory they take."""
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
        (f"steps of {plan['rows_per_step']} {unit}", f"{plan['steps']:,}"),
        ("tokens, mean and most", f"{plan['tokens_mean']:.0f}, {plan['tokens_max']} of {plan['tokens_allowed']}"),
        *((f"{what} cut", count) for what, count in plan["cut"].items() if count),
        *((f"left out, {why.replace('_', ' ')}", n) for why, n in plan["left_out"]["train"].items() if n),
        *((f"parameters: {part.replace('_', ' ')}", f"{n:,}") for part, n in plan["parameters"].items() if n),
        *((f"{whose}: {part}", f"{size:.2f} GiB") for part, size in plan["memory_gib"].items()),
        *((f"peak with {flag}", f"{size:.2f} GiB") for flag, size in plan["peak_gib_with"].items()),
        (f"memory of {plan['device']}", "unknown" if there is None else f"{there:.2f} GiB"),
    ]
    show.table(f"{plan['run']}: what `prlhf train` would do", ["what", "value"], rows)
    for line in plan["missing"]:
        show.say(f"note: {line}")
    show.say("nothing was trained or written; memory is an estimate")
