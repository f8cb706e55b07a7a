"""The valid inputs to damage, made once: a base, data, runs and responses, all as small as possible."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from material import write_base, write_data  # tests/


@dataclass(frozen=True)
class Material:
    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def data(self) -> Path:
        """Plain text, with three seen users and an unseen one."""
        return self.root / "data"

    @property
    def talks(self) -> Path:
        """Conversations, with their own prompts and judging pairs."""
        return self.root / "talks"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def reward(self) -> Path:
        return self.root / "reward"

    @property
    def stopped(self) -> Path:
        """An unfinished run with checkpoints."""
        return self.root / "stopped"

    @property
    def per_user(self) -> Path:
        return self.root / "per-user"

    @property
    def responses(self) -> Path:
        """responses.jsonl, responses.parquet and shards/."""
        return self.root / "responses"

    def train(self, out: Path, **changes: Any) -> Any:
        """The settings of a run of a few steps."""
        from prlhf.config import TrainConfig

        values = {
            "dataset": str(self.data), "out": out, "model": str(self.base), "device": "cpu", "precision": "fp32",
            "nll": 0.0, "user_tokens": 2, "lora_r": 2, "lora_dropout": 0.0, "warmup_steps": 0, "batch_size": 4,
            "max_steps": 3, "save_every": 1, "keep_checkpoints": 3, "eval_limit": 2, "seed": 3,
        }  # fmt: skip
        return TrainConfig.model_validate(values | changes)

    def write(self, out: Path, **changes: Any) -> Any:
        """The settings of a few short responses."""
        from prlhf.config import GenerateConfig

        values = {"out": out, "max_new_tokens": 2, "max_prompts": 2, "device": "cpu", "users": "ann,generic"}
        return GenerateConfig.model_validate(values | changes)


def make(root: Path) -> Material:
    """Make everything below `root`, in a few seconds."""
    from prlhf.train.per_user import train_per_user
    from prlhf.train.run import train

    os.environ["PRLHF_CACHE"] = str(root / "cache")
    found = Material(root)
    write_base(found.base)
    write_data(found.data)
    write_talks(found.talks)
    train(found.train(found.run))
    train(found.train(found.reward, objective="rm", user_model="cluster", k=2))
    _stop(found)
    train_per_user(found.train(found.per_user, max_steps=1))
    write_responses(found)
    return found


def write_responses(found: Material) -> None:
    """Write a few responses in every format."""
    from prlhf.generate.run import generate

    for name in ("responses.jsonl", "responses.parquet", "shards"):
        generate(found.run, found.write(found.responses / name, block=2))


class Stopped(Exception):
    pass


def _stop(found: Material) -> None:
    from prlhf.progress import Silent
    from prlhf.train.run import train

    class StopAtEnd(Silent):
        def start(self, label: str, total: int) -> None:
            if label == "evaluating":
                raise Stopped

    try:
        train(found.train(found.stopped), progress=StopAtEnd())
    except Stopped:
        return
    raise AssertionError("it did not stop")


def write_talks(folder: Path) -> None:
    from prlhf.dataset import Comparison, Prepared, User, prompt_id, write_prepared

    def said(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    def row(split: str, number: int, user: str) -> Comparison:
        prompt = [said("user", "Why?"), said("assistant", "Because."), said("user", f"And then, {number}?")]
        answers = [[said("assistant", text)] for text in ("Nothing more.", "I do not know.")]
        index = {"ann": 1, "bob": 2}.get(user, 0)
        return Comparison(f"{split}-{number}", prompt, *answers, user, index, "a pilot", prompt_id(prompt), index > 0)

    train = [row("train", number, ("ann", "bob")[number % 2]) for number in range(6)]
    held_out = [row("eval", number, ("ann", "bob", "zoe")[number % 3]) for number in range(6, 9)]
    users = [
        User(name, i, "a pilot", "Be brief.", 3 if i else 0, 1, i > 0)
        for name, i in {"ann": 1, "bob": 2, "zoe": 0}.items()
    ]
    material = {"self_description": "I fly.", "stated_prefs_top": ["safety"], "examples": [], "age": "30"}
    judging = [{"prompt": row.prompt, "user_id": row.user_id, "material": material} for row in held_out]
    prompts: list[Any] = [[said("user", "What is a tide?")], [said("user", "Who are you?")]]
    write_prepared(folder, Prepared(train, held_out, users, {"dataset": "talks"}, prompts, judging))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
