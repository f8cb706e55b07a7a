"""The commands that are killed. Each takes some seconds, most of them while it writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from material import write_base, write_data  # tests/


@dataclass(frozen=True)
class Stage:
    """A command `line`. After a kill it is continued with `again`, or with `line` if there is nothing to continue."""

    name: str
    kills: int  # out of 60
    line: list[str]
    again: list[str] = field(default_factory=list)  # default: the same line
    but: tuple[str, ...] = ()  # files that are not compared, as they hold times
    within: float = 0.0  # tolerance of numbers; with 0, weights and bytes must be equal, too
    ray: bool = False
    before: tuple[str, ...] = ()  # folders to copy to where the command runs, by name


def make(root: Path, url: str) -> list[Stage]:
    """Make data, a base and a run below `root`, and the stages on them. `url`: the server that judges."""
    data, base = write_data(root / "data"), write_base(root / "base")
    _rows(root / "mine.jsonl")
    recipe = _recipe(root / "given.yaml", data, base)
    run = root / "run"
    _train(run, data, base)
    for name, seed in (("a", 1), ("b", 2)):
        _generate(run, root / f"{name}.jsonl", seed)
    write = ["generate", str(run), "--max-new-tokens", "40", "--batch-size", "2", "--seed", "5"]
    llm = [
        "judge", str(root / "a.jsonl"), str(root / "b.jsonl"), "--judge", "llm:m", "--base-url", url, "--protocol",
        "plain", "--concurrency", "2", "--out", "judged",
    ]  # fmt: skip
    train = ["train", "--recipe", str(recipe), "--out", "run"]
    resume = ["train", "--resume", "--out", "run"]
    sweep = [
        "sweep",
        "--recipe",
        str(recipe),
        "--set",
        "max_steps=40",
        "--space",
        "alpha=0.2,0.5,0.8",
        "--concurrent",
        "1",
    ]
    log = "*events*"
    return [
        Stage("prep", 6, ["prep", str(root / "mine.jsonl"), "--out", "data"]),
        Stage("prep in place of older data", 4, ["prep", str(root / "mine.jsonl"), "--out", "data"], before=("data",)),
        Stage("train", 12, train, resume),
        Stage("train --workers 2", 5, [*train, "--workers", "2"], resume, (log,), 1e-6, ray=True),
        Stage("generate, a file", 8, [*write, "--out", "out.jsonl"]),
        Stage("generate, shards", 7, [*write, "--out", "out", "--block", "3"]),
        Stage("generate --workers 2", 4, [*write, "--out", "out", "--block", "3", "--workers", "2"], ray=True),
        Stage("judge by an LLM", 7, llm, but=("*report.html",)),
        Stage("judge --checkpoint", 3, ["judge", "--checkpoint", str(run), "--dataset", str(data), "--out", "judged"]),
        Stage(
            "sweep", 4, [*sweep, "--out", "sweep"], ["sweep", "--resume", "--out", "sweep"], SWEEP_TIMES, 1e-6, ray=True
        ),
    ]


# the table and the report hold seconds; the counts of shared work depend on finished work
SWEEP_TIMES = ("*report.html", "*results.parquet", "*shared.json", "*README.md")


def _rows(path: Path) -> None:
    """Rows that take a second to prepare."""
    row = {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No idea."}
    rows = (row | {"user_id": f"u{i % 40}", "prompt": f"Why {i}?"} for i in range(20_000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _recipe(path: Path, data: Path, base: Path) -> Path:
    values: dict[str, Any] = {
        "dataset": str(data), "model": str(base), "device": "cpu", "precision": "fp32", "nll": 0.0, "user_tokens": 2,
        "lora_r": 2, "lora_dropout": 0.2, "lr": 1e-4, "user_lr": 1e-3, "warmup_steps": 0, "batch_size": 4,
        "max_steps": 120, "save_every": 7, "eval_every": 40, "seed": 3,
    }  # fmt: skip
    path.write_text(yaml.safe_dump({"train": values}))
    return path


def _train(out: Path, data: Path, base: Path) -> None:
    from prlhf.config import TrainConfig
    from prlhf.train.run import train

    values = {"dataset": str(data), "out": out, "model": str(base), "device": "cpu", "user_tokens": 2, "max_steps": 2}
    train(TrainConfig.model_validate(values))


def _generate(run: Path, out: Path, seed: int) -> None:
    from prlhf.config import GenerateConfig
    from prlhf.generate.run import generate

    generate(run, GenerateConfig.model_validate({"out": out, "seed": seed, "max_new_tokens": 4, "device": "cpu"}))
