"""`prlhf train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf_cli import show


def command(
    dataset: Annotated[str | None, typer.Option(help="demo, tldr, or a prepared folder (default: demo).")] = None,
    user_model: Annotated[
        Literal["uniform", "individual", "cluster"] | None,
        typer.Option(help="uniform is vanilla DPO (default: individual)."),
    ] = None,
    k: Annotated[int | None, typer.Option(help="cluster: number of clusters (default: 10).")] = None,
    user_tokens: Annotated[int | None, typer.Option(help="T_u, soft-prompt vectors per user (default: 10).")] = None,
    user_init: Annotated[
        Literal["zero", "vocabulary", "random"] | None,
        typer.Option(help="How users' embeddings start (default: vocabulary)."),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the user's term, 0 to 1 (default: 0.5).")] = None,
    beta: Annotated[float | None, typer.Option(help="DPO's beta (default: 0.1).")] = None,
    nll: Annotated[
        float | None,
        typer.Option(help="Weight of the NLL per chosen token; 0: as published (default: 0.5)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base: hub id, folder or .gguf file (default: by data set).")
    ] = None,
    full_finetune: Annotated[bool | None, typer.Option("--full-finetune", help="Train all weights, no LoRA.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the adapter.")] = None,
    user_lr: Annotated[float | None, typer.Option(help="Learning rate of the user model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Comparisons per forward pass.")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Forward passes per optimizer step.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training comparisons.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimizer steps.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget of user tokens, text, prompt and response.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Cut longer prompts from their beginning.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, typer.Option(help="auto: bf16 on GPUs.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; 0: only at the end.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the base model.")
    ] = None,
    report_to: Annotated[str | None, typer.Option(help="tensorboard, wandb, … as in transformers.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe (a file, or a shipped one's name) whose `train` section to use.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key=value of a recipe. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/DATASET-USERMODEL).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Train user model and adapter together on comparisons with users (P-DPO; vanilla DPO with `uniform`).

    prlhf train --dataset tldr --user-model cluster --k 10

    prlhf train --recipe recipes/demo.yaml --set lora_r=16 --out runs/demo

    prlhf train --resume --out runs/demo
    """
    flags = {key: value for key, value in locals().items() if key not in ("recipe", "set_", "resume", "as_json")}

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import TrainConfig, load_recipe, parse_overrides, resolve
        from prlhf.data import locate

        layers = [load_recipe(recipe).get("train", {}), parse_overrides(set_, "train"), flags]
        config = resolve(TrainConfig, *layers)
        if resume:
            from prlhf.train.run import saved_config

            config = resolve(TrainConfig, saved_config(config.folder).model_dump(), *layers)
        else:
            config = config.model_copy(
                update={"out": config.folder, "dataset": str(locate(config.dataset, load_recipe(recipe), bars))}
            )
        from prlhf.train.run import train

        return train(config, resume, bars)

    show.run(work, show_run, as_json)


def show_run(results: dict[str, Any]) -> None:
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
    show.table("implicit-reward accuracy, held-out comparisons", ["user", "as the user", "as generic", "margin"], rows)
