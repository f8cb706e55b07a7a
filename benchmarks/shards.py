"""Resident memory of each of two workers on CPUs, DDP compared with FSDP. `python -m benchmarks.shards`.

The base is a random Llama of mostly weights (75 million parameters of 4 bytes). There are three numbers per
worker, without the memory before the run: after creating the model, after a step (weights and the optimizer's moments),
and the maximum from reading the base to the last step.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
from typing_extensions import override

import prlhf
from prlhf.config import PrepConfig, TrainConfig
from prlhf.data import prepare
from prlhf.dataset import read_prepared, write_prepared
from prlhf.train.loop import Stop
from prlhf.train.run import learn

TINY = Path(prlhf.__file__).parent / "assets/tiny-base"
MIB = 2**20
WIDE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 12,
    "max_position_embeddings": 512,
}  # fmt: skip


def write_base(folder: Path, shape: dict[str, int]) -> None:
    """Write a random Llama of `shape` with the bundled tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Write comparisons of a few users of the demo, without held-out ones."""
    prepare(PrepConfig(dataset="demo", out=folder, users=8, comparisons=4))
    data = read_prepared(folder)
    write_prepared(folder, replace(data, eval=[]))


def resident(name: str = "VmRSS") -> int:
    """Return bytes by a name of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


class Look(Stop):
    """Records the resident memory at the start of training and after the last step, and ends the run there."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.begun = self.stepped = 0
        self._left = steps

    @override
    def __enter__(self) -> Any:
        self.begun = resident()
        return super().__enter__()

    @override
    def agreed(self) -> bool:
        """See Stop; it is asked after every step."""
        self.stepped = resident()
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return super().agreed()


def work(rank: int, count: int, port: int, config: TrainConfig, sharded: bool, found: Any) -> None:
    """Run one worker: first a small run for the imports, then the measured one."""
    import torch

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(count), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    own = config.model_copy(update={"out": Path(str(config.out)) / str(rank)})
    warm = own.model_copy(update={"model": "tiny", "max_steps": 1, "out": Path(f"{own.out}-warm")})
    data = read_prepared(Path(config.dataset))
    learn(warm, data, False, sharded=sharded)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    assert own.max_steps
    before, look = resident(), Look(own.max_steps)
    try:
        learn(own, data, False, stop=look, sharded=sharded)
    except KeyboardInterrupt:
        found[rank] = tuple(value - before for value in (look.begun, look.stepped, resident("VmHWM")))
    torch.distributed.destroy_process_group()


def measured(config: TrainConfig, sharded: bool, count: int = 2) -> list[tuple[int, int, int]]:
    """Return the bytes of each worker: at the start of training, after the last step, and at most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _no_hoarding(), mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(work, (count, port, config, sharded, found), nprocs=count)
        return [found[rank] for rank in range(count)]


@contextmanager
def _no_hoarding() -> Iterator[None]:
    """Let the started processes return the memory of every freed tensor at once."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        yield
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def main(folder: Path) -> None:
    """Print the table of docs/CLUSTER.md."""
    write_base(folder / "base", WIDE)
    write_data(folder / "data")
    print("| MiB of each worker | model made | after a step | at most |\n|---|---|---|---|")
    for full in (False, True):
        rows = []
        for sharded in (False, True):
            config = TrainConfig(
                dataset=str(folder / "data"), model=str(folder / "base"), out=folder / f"run-{full}-{sharded}",
                full_finetune=full, device="cpu", batch_size=2, max_steps=3, eval_every=0, save_every=1000,
                reference_cache=False,
            )  # fmt: skip
            rows.append(measured(config, sharded))
            name = f"{'all weights' if full else 'LoRA'}, {'fsdp' if sharded else 'ddp'}"
            cells = [" and ".join(f"{one / MIB:.0f}" for one in pair) for pair in zip(*rows[-1], strict=True)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        ratios = [sum(fsdp) / sum(ddp) for ddp, fsdp in zip(*(zip(*row, strict=True) for row in rows), strict=True)]
        print(f"| ratio | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="prlhf-shards-") as scratch:
            main(Path(scratch))
