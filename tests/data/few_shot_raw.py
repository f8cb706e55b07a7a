"""Made-up rows of PersonalLLM, PersonalRewardBench and UltraFeedback in the layout of their published files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.data.personalllm import REWARD_MODELS

ATTRIBUTES = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


# ---- PersonalLLM ----


def scored(number: int, **changes: Any) -> dict[str, Any]:
    """A row; reward model m ranks the eight responses in an order of its own."""
    row: dict[str, Any] = {"prompt_id": number, "subset": "made-up", "prompt": f"Question {number}?"}
    for response in range(1, 9):
        row |= {f"response_{response}": f"answer {response} to {number}", f"response_{response}_model": "org/model"}
        for place, model in enumerate(REWARD_MODELS):
            row[f"response_{response}_{model}"] = float((response * (2 * place + 1) + number) % 17) - 3.0 * place
    return {key: value for key, value in (row | changes).items() if value is not ...}


def personalllm(folder: Path, train: int = 30, test: int = 12) -> Path:
    """The repository's files."""
    write_parquet(folder / "data/train-00000-of-00001.parquet", [scored(n) for n in range(train)])
    write_parquet(folder / "data/test-00000-of-00001.parquet", [scored(1000 + n) for n in range(test)])
    return folder


# ---- PersonalRewardBench ----


def chosen(user: str, number: int, split: str, **changes: Any) -> dict[str, Any]:
    """A row as of PRISM: a conversation that ends with the user's turn, and two answers of a `model`."""
    row = {
        "conversation_id": f"c{number}",
        "user_id": user,
        "context": [
            {"content": f"Hello {number}", "role": "user"},
            {"content": "Hi!", "role": "model"},
            {"content": f"Why {number}?", "role": "user"},
        ],
        "chosen": {"content": f"Because of {number}.", "role": "model"},
        "rejected": {"content": "No idea.", "role": "model"},
        "turns": 2,
        "type": "unguided",
        "split": split,
        "flip": False,
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def rewardbench_rows() -> dict[str, list[dict[str, Any]]]:
    """File -> rows: two seen users and two unseen ones, each with two context pairs and a tested one."""
    users = {"train": ["ann", "bob"], "validation": ["cy"], "test": ["di"]}
    splits = ("train", "val", "test")
    return {
        name: [chosen(user, 10 * ord(user[0]) + n, split) for user in found for n, split in enumerate(splits)]
        for name, found in users.items()
    }


def rewardbench(folder: Path) -> Path:
    for name, rows in rewardbench_rows().items():
        write_parquet(folder / f"data/{name}-00000-of-00001.parquet", rows)
    return folder


# ---- UltraFeedback ----


def completion(said: str, **ratings: str) -> dict[str, Any]:
    """A completion; ratings that are not given are 3."""
    annotations = {name: {"Rating": ratings.get(name, "3"), "Rationale": "because"} for name in ATTRIBUTES}
    return {"model": "org/model", "principle": "helpfulness", "response": said, "annotations": annotations}


def rated(number: int, *completions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A row; by default the first response is more helpful and the second more honest, with a lower mean."""
    both = [
        completion(f"helpful {number}", helpfulness="5", honesty="2", instruction_following="5", truthfulness="4"),
        completion(f"honest {number}", helpfulness="2", honesty="5", instruction_following="1", truthfulness="1"),
    ]
    row = {
        "source": "flan",
        "instruction": f"Do {number}.",
        "models": ["org/model"] * 2,
        "completions": list(completions) or both,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def ultrafeedback(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The repository's files, half of the rows in each of two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("evol_instruct", rows[::2]), ("flan", rows[1::2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder
