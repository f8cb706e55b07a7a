"""The tables of docs/CLUSTER.md: memory of 7-8B models by `--dry-run`.

    python -m benchmarks.memory [FOLDER]

FOLDER (default: runs/memory) then holds what the commands of that page need: `shapes/NAME`, model folders with a config
and no weights, and `data/long`, comparisons of 1,500 + 250 tokens. The numbers are planned, not measured on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prlhf
from prlhf.config import ClusterConfig, PrepConfig, TrainConfig
from prlhf.data import prepare
from prlhf.train.dry_run import plan

# as published with the models: meta-llama/Meta-Llama-3-8B, Qwen/Qwen2.5-7B
SHAPES = {
    "llama-3-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    },
}  # fmt: skip
WHERE = [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (8, "ddp"), (8, "fsdp")]  # number of GPUs, and --parallel
SETTINGS = [(full, kept, tokens) for full in (False, True) for kept in (False, True) for tokens in (16384, 4096)]
TINY = Path(prlhf.__file__).parent / "assets/tiny-base"  # its tokenizer has one token per word


def write_inputs(folder: Path) -> None:
    """Write `shapes/` and `data/long` unless they exist."""
    for name, shape in SHAPES.items():
        (folder / "shapes" / name).mkdir(parents=True, exist_ok=True)
        config = shape | {"max_position_embeddings": 8192, "tie_word_embeddings": False}
        (folder / "shapes" / name / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, folder / "shapes" / name / file)
    if (folder / "data/long").exists():
        return
    rows = [
        {"user_id": f"user-{i % 16}", "prompt": " boats" * (1500 - i % 4)}
        | {"chosen": " my" * 250, "rejected": " sister" * 250}
        for i in range(64)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(PrepConfig(dataset=str(folder / "rows.jsonl"), out=folder / "data/long"))


def command_of(model: str, gpus: int, parallel: str, full: bool, checkpointing: bool, tokens: int) -> str:
    """Return the command that gives a cell of the table."""
    words = f"prlhf train --dry-run --dataset data/long --model shapes/{model} --device cuda"
    words += f" --workers {gpus} --parallel {parallel}" if gpus > 1 else ""
    words += " --full-finetune" if full else ""
    words += " --set gradient_checkpointing=true" if checkpointing else ""
    return words + f" --set pack_tokens={tokens}"


def cell(model: str, gpus: int, parallel: str, full: bool, checkpointing: bool, tokens: int) -> dict[str, Any]:
    """Return the plan that this command makes."""
    config = TrainConfig(
        dataset="data/long", model=f"shapes/{model}", device="cuda", full_finetune=full,
        gradient_checkpointing=checkpointing, pack_tokens=tokens,
    )  # fmt: skip
    return plan(config, cluster=ClusterConfig(workers=gpus if gpus > 1 else 0, parallel=parallel))


def row(model: str, gpus: int, parallel: str) -> str:
    """Return a line of the table: peaks in GiB."""
    cells = [f"{cell(model, gpus, parallel, *setting)['memory_gib']['peak']:.1f}" for setting in SETTINGS]
    return f"| {gpus if gpus == 1 else f'{gpus}, {parallel}'} | {' | '.join(cells)} |"


def tables() -> Iterator[str]:
    for model in SHAPES:
        yield (
            f"| {model}: GPUs |"
            + " | ".join(
                f"{'all weights' if full else 'LoRA'}{', gc' if kept else ''}, {tokens // 1024}k"
                for full, kept, tokens in SETTINGS
            )
            + " |"
        )
        yield "|---|" + "---|" * len(SETTINGS)
        yield from (row(model, *where) for where in WHERE)
        yield ""


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/memory")
    write_inputs(folder)
    os.chdir(folder)
    for line in tables():
        print(line, flush=True)
