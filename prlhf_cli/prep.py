"""`prlhf prep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from prlhf_cli import show


def command(
    dataset: Annotated[
        str,
        typer.Argument(
            help="demo, demo-profiles, demo-crowd, tldr, psoups, prism, or the path or hub id of custom data."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: data/NAME).")] = None,
    source: Annotated[str | None, typer.Option(help="Local raw data (default: the hub).")] = None,
    top_users: Annotated[int | None, typer.Option(help="tldr: keep the N most active workers.")] = None,
    simulate: Annotated[
        Literal["none", "length"] | None, typer.Option(help="tldr: replace the workers' choices by simulated ones.")
    ] = None,
    minority: Annotated[
        float | None, typer.Option(help="Share of simulated users that prefer the shorter text.")
    ] = None,
    users: Annotated[int | None, typer.Option(help="demo: how many users (default: 10; demo-crowd: 1500).")] = None,
    comparisons: Annotated[
        int | None, typer.Option(help="demos: training comparisons per user (default: 300; demo-crowd: 8).")
    ] = None,
    noise: Annotated[float | None, typer.Option(help="demo-crowd: share of training choices turned around.")] = None,
    reveal: Annotated[
        int | None, typer.Option(help="demo-crowd: how much of a user's taste the text tells, 0 to 3 dimensions.")
    ] = None,
    unseen_fraction: Annotated[
        float | None, typer.Option(help="prism, demo-crowd: share of users kept out of training (default: 0.1).")
    ] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="Share held out: of prompts (custom, psoups), of a user's dialogues (prism).")
    ] = None,
    prefs: Annotated[
        Literal["ratings", "order"] | None,
        typer.Option(help="prism: a user's top preferences by rating, or by order shown, as in the paper's code."),
    ] = None,
    judging_users: Annotated[
        int | None, typer.Option(help="prism: seen, and unseen, users to select for judging (default: 25).")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="custom: our column=theirs, as in user_id=annotator, or id=none. Repeatable."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="custom: split to train on, or TRAIN,EVAL (default: train, and eval, validation or test)."),
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("--config", help="custom: configuration of a hub data set, or folder in the folder.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="custom: branch, tag or commit of a hub data set.")] = None,
    preference_text: Annotated[
        bool | None,
        typer.Option(
            "--preference-text/--no-preference-text",
            help="psoups: give users their true preference as text (default: no).",
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option(
            "--strict/--skip-bad", help="Malformed rows: stop before writing, or drop and count (default: strict)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Base (hub id, folder, .gguf): say how the rows fit its context; only its tokenizer is read."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe (a file, or a shipped one's name) whose `prep` section to use.")
    ] = None,
    as_json: Annotated[bool, show.Json] = False,
) -> None:
    """Turn raw data into a prepared data set: train, eval and users as parquet, and a manifest.

    prlhf prep demo --out data/demo

    prlhf prep tldr --source raw/tldr --simulate length --minority 0.3 --out data/tldr

    prlhf prep prism --source raw/prism --out data/prism

    prlhf prep choices.jsonl --column user_id=annotator --out data/mine

    prlhf prep choices.jsonl --model tiny --out data/mine
    """

    def work(bars: show.Bars) -> dict[str, Any]:
        from prlhf.config import load_recipe
        from prlhf.data import config_for, prepare

        flags = {
            "out": out,
            "source": source,
            "top_users": top_users,
            "simulate": simulate,
            "minority": minority,
            "users": users,
            "comparisons": comparisons,
            "noise": noise,
            "reveal": reveal,
            "unseen_fraction": unseen_fraction,
            "eval_fraction": eval_fraction,
            "prefs": prefs,
            "judging_users": judging_users,
            "columns": _columns(column) if column else None,
            "split": split,
            "config": configuration,
            "revision": revision,
            "text": preference_text,
            "bad_rows": None if strict is None else "strict" if strict else "skip",
            "seed": seed,
        }
        config = config_for(dataset, load_recipe(recipe).get("prep", {}), flags)
        if model is None:
            return {"out": str(config.folder), **prepare(config, bars)}
        from prlhf.train.encode import base_for, room

        base = base_for(model)  # before the data set is written
        return {"out": str(config.folder), **prepare(config, bars), "room": room(config.folder, base)}

    show.run(work, _show, as_json)


def _columns(pairs: list[str]) -> dict[str, str]:
    from prlhf.errors import PrlhfError

    for pair in pairs:
        if not all(pair.partition("=")):
            raise PrlhfError(f"--column {pair} is not OURS=THEIRS", "write it as in --column user_id=annotator")
    return dict(tuple(pair.split("=", 1)) for pair in pairs)  # type: ignore[misc]


def _show(manifest: dict[str, Any]) -> None:
    rows = [(split, count) for split, count in manifest["kept"].items()]
    rows += [(f"users {kind}", count) for kind, count in manifest["users"].items()]
    show.table(manifest["out"], ["kept", "count"], rows)
    dropped = [(reason, count) for reason, count in _flat(manifest.get("dropped", {})) if count]
    if dropped:
        show.table("dropped", ["reason", "rows"], dropped)
    if room := manifest.get("room"):
        rows = [(f"{share} of the rows have at most", tokens) for share, tokens in room["tokens"].items()]
        rows += [(f"{part} that do not fit", count) for part, count in room["do_not_fit"].items()]
        show.table(f"{room['model']}: context of {room['context']:,} tokens", ["tokens", ""], rows)
        if room["why"]:
            show.say(f"{room['why']}; training leaves them out with skip_long, max_prompt_tokens cuts prompts")


def _flat(counts: dict[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    rows: list[tuple[str, int]] = []
    for key, value in counts.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
