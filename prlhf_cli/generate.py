"""`prlhf generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf_cli import cluster, show


def command(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished run; a baseline can do without.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="eval: all held-out prompts; own: to each user those of their own; judging: the data's "
            "judging.jsonl; or a file: JSONL, JSON, CSV, TSV, parquet, or text (default: eval)."
        ),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(help="The column of that file which holds the prompts (default: prompt).")
    ] = None,
    users: Annotated[
        str | None,
        typer.Option(
            help="all, seen, unseen, generic, and ids, with commas between (an id that holds one in double "
            "quotes); all is seen and generic, "
            "with own and judging seen and unseen (default: all)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="NAME.jsonl, NAME.parquet, or, without an ending, a folder of shards (default: responses.jsonl)."
        ),
    ] = None,
    shards: Annotated[
        Literal["parquet", "jsonl"] | None,
        typer.Option(help="Write a folder of shards, whatever its name, in this format (default: by the name)."),
    ] = None,
    block: Annotated[
        int | None, typer.Option(help="Responses a shard; also the most a worker takes at a time (default: 256).")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Where eval, own and judging come from (default: the run's).")
    ] = None,
    unknown_as_generic: Annotated[
        bool | None,
        typer.Option("--unknown-as-generic/--no-unknown-as-generic", help="Serve unknown ids as the generic user."),
    ] = None,
    baseline: Annotated[
        Literal["none", "base", "oracle", "in-context", "chosen"] | None,
        typer.Option(
            help="What to write instead. base: the base model, as the generic user; oracle: the base, told the "
            "user's true preference; in-context: the base, shown the user's own choices; chosen: the data's chosen "
            "responses (default: none)."
        ),
    ] = None,
    examples: Annotated[int | None, typer.Option(help="in-context: choices to show (default: 4).")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response, in tokens (default: 128).")] = None,
    max_prompts: Annotated[
        int | None, typer.Option(help="Only the first N prompts; with own and judging, of each user.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="(prompt, user) pairs per batch (default: 32).")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy (default: 1).")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus of the distribution (default: 1).")] = None,
    best_of: Annotated[
        int | None, typer.Option(help="Write N candidates, keep the one with the highest reward (default: 1).")
    ] = None,
    reward: Annotated[
        Path | None, typer.Option(help="best-of: the run that gives rewards, a reward model or a policy.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; each (prompt, user) has random numbers of its own.")] = None,
    skip_long: Annotated[
        bool | None, typer.Option("--skip-long/--no-skip-long", help="Leave out and count prompts that do not fit.")
    ] = None,
    template_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the chat template, such as enable_thinking=false. Repeatable."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the run's base model is now, if it has moved; the base where RUN is none.")
    ] = None,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option("--trust-remote-code/--no-trust-remote-code", help="Run code that comes with the base model."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    workers: cluster.Workers = None,
    gpus_per_worker: cluster.Gpus = None,
    cpus_per_worker: cluster.Cpus = None,
    ray_address: cluster.Address = None,
    verbose: cluster.Verbose = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe (a file, or a shipped one's name) whose `generate` and `cluster` sections to use."),
    ] = None,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Write responses, one row per (prompt, user). A rerun goes on where a killed one stopped.

    prlhf generate runs/demo --prompts eval --users all --out responses.jsonl

    prlhf generate runs/demo --prompts mine.txt --users 4,7,generic --temperature 0

    prlhf generate runs/sft --best-of 8 --reward runs/demo-rm-individual

    prlhf generate runs/demo --workers 4 --out responses

    prlhf generate --baseline oracle --model tiny --dataset data/demo-profiles --out oracle.jsonl

    prlhf generate --baseline chosen --dataset data/demo --out chosen.jsonl
    """
    flags = {
        key: value for key, value in locals().items() if key not in ("run", "recipe", "template_option", "as_json")
    }

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import GenerateConfig, load_recipe, parse_template_options, resolve

        sections, own = load_recipe(recipe), flags | {"template_options": parse_template_options(template_option)}
        where = cluster.config_of(sections, {}, own)
        config = resolve(GenerateConfig, sections.get("generate", {}), own)
        from prlhf.generate.run import generate

        return generate(run, config, bars, where)

    show.run(work, _show, as_json)


def _show(result: dict[str, Any]) -> None:
    show.say(f"{result['out']}: {result['responses']} responses for {result['users']} users ({result['new']} new)")
