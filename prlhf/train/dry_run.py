"""What a training run would do and need: steps, lengths, parameters, memory. Nothing is loaded or trained."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.config.keys import unused
from prlhf.config.train import POLICY_GRADIENT
from prlhf.dataset import Prepared
from prlhf.errors import PrlhfError
from prlhf.model.base import load_skeleton, make_trainable, pick_device, pick_dtype
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoder
from prlhf.model.engine import budget_on
from prlhf.model.personalized import CHUNK, trunk_of
from prlhf.model.quantized import check_widths
from prlhf.model.user_models import size_of
from prlhf.progress import SILENT, Progress
from prlhf.train.batches import step_count
from prlhf.train.encode import encode, lengths_of, note_left_out
from prlhf.train.memory import ALONE, Batch, memory, shape_of
from prlhf.train.objectives import weighted_terms
from prlhf.train.on_ray import check_share
from prlhf.train.run import checked

GIB = 2**30


def plan(config: TrainConfig, progress: Progress = SILENT, cluster: ClusterConfig = ALONE) -> dict[str, Any]:
    """Check settings, data, model and run folder as `train` would, and return what it would do. Writes nothing.

    A GPU may be missing: a run on other machines can be planned on this one. Memory is that of one worker, in GiB.

    Raises:
        PrlhfError: `train` would refuse to start.
    """
    config, data = checked(config, False, progress)
    check_share(config, cluster)
    device, dtype, elsewhere = device_of(config, cluster)
    base, missing = load_skeleton(str(config.model), dtype, config.trust_remote_code)
    check_widths(base.name, base.lm, config.quantize, device)
    lm = make_trainable(base.lm, config)
    if config.objective == "rm":
        trunk_of(lm)
    policy: Trained[Any] = Trained(lm, base, config, data.user_ids, {}, conversational=data.conversational)
    encoder, lengths, held_out, left_out = look_at(policy, data)
    encoder.note_cut(progress)
    note_left_out(left_out, progress)
    shape = shape_of(base, lm, device, config.quantize)
    users = user_parameters(config, len(data.user_ids), shape.h, shape.layers)
    head = shape.h if config.objective == "rm" else 0
    idle = idle_parameters(config, len(data.user_ids), shape.h, step_count(config, len(lengths)), shape.layers)

    def parts(config: TrainConfig, cluster: ClusterConfig) -> dict[str, float]:
        budget = budget_on(device, config.pack_tokens)
        batch = largest_batch(share_of(config, cluster), lengths, budget, shape.vocabulary)
        return memory(config, shape, users + head, batch, idle, cluster)

    by_part = parts(config, cluster)
    others = ((flag, parts(*changed)["peak"]) for flag, changed in changes(config, cluster, device) if goes(*changed))
    return {
        "run": str(config.folder),
        "settings": config.model_dump(mode="json"),
        "device": device.type,
        "precision": "bf16" if shape.a == 2 else "fp32",
        "workers": cluster.workers,
        "parallel": cluster.parallel if cluster.workers > 1 else None,
        "users": len(data.user_ids),
        "train": len(lengths),
        "eval": held_out,
        "steps": step_count(config, len(lengths)),
        "rows_per_step": config.batch_size * config.accumulation,
        "tokens_mean": sum(map(sum, lengths)) / len(lengths),
        "tokens_max": max(map(sum, lengths)),
        "tokens_allowed": encoder.limit,
        "cut": encoder.cut,
        "left_out": left_out,
        "read_before": 2 * len(lengths) if config.user_init == "choices" else 0,
        "parameters": {
            "base": shape.parameters,
            "adapter": 0 if config.full_finetune else shape.trained,
            "user_model": users,
            "head": head,
            "trained": shape.trained + users + head,
        },
        "memory_gib": {part: size / GIB for part, size in by_part.items()},
        "peak_gib_with": {flag: peak / GIB for flag, peak in others if peak != by_part["peak"]},
        "available_gib": None if elsewhere else available(device) / GIB,
        "missing": missing + elsewhere,
    }


def device_of(config: TrainConfig, cluster: ClusterConfig) -> tuple[torch.device, torch.dtype, list[str]]:
    """The device and the precision of a run, and a line if this machine does not have such a device.

    Workers with GPUs run on GPUs. A GPU that is not here is assumed to support bf16.
    """
    wanted = config.device
    if wanted == "auto" and cluster.workers and cluster.gpus_per_worker:
        wanted = "cuda"
    if not wanted.startswith("cuda") or torch.cuda.is_available():
        device = pick_device(wanted)
        return device, pick_dtype(config.precision, device), []
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    return torch.device("cuda"), dtype, ["this machine has no GPU: the plan is for another one, of unknown memory"]


def share_of(config: TrainConfig, cluster: ClusterConfig) -> TrainConfig:
    """`config` with the batch of one worker."""
    return config.model_copy(update={"batch_size": math.ceil(config.batch_size / max(1, cluster.workers))})


def goes(config: TrainConfig, cluster: ClusterConfig) -> bool:
    """Whether training would take these settings on these workers."""
    try:
        check_share(config, cluster)
    except PrlhfError:
        return False
    return True


def changes(
    config: TrainConfig, cluster: ClusterConfig, device: torch.device
) -> Iterator[tuple[str, tuple[TrainConfig, ClusterConfig]]]:
    """Changes of one setting that change a worker's memory but not what is learned, each with its flag."""
    budget, workers = budget_on(device, config.pack_tokens), max(1, cluster.workers)
    toggled = not config.gradient_checkpointing
    found: dict[str, dict[str, Any]] = {
        f"--set gradient_checkpointing={str(toggled).lower()}": {"gradient_checkpointing": toggled},
        f"--set pack_tokens={max(1, budget // 2)}": {"pack_tokens": max(1, budget // 2)},
    }
    if config.batch_size % 2 == 0:
        half = {"batch_size": config.batch_size // 2, "accumulation": 2 * config.accumulation}
        found["--batch-size {batch_size} --accumulation {accumulation}".format(**half)] = half
    for flag, change in found.items():
        if unused(config.declared, config, change):
            continue
        yield flag, (config.model_copy(update=change), cluster)
    if workers > 1:
        other = "ddp" if cluster.parallel == "fsdp" else "fsdp"
        yield f"--parallel {other}", (config, cluster.model_copy(update={"parallel": other}))
    yield f"--workers {2 * workers}", (config, cluster.model_copy(update={"workers": 2 * workers}))


def look_at(
    policy: Trained[Any], data: Prepared
) -> tuple[Encoder, list[tuple[int, int]], int, dict[str, dict[str, int]]]:
    """Encode all rows as training would.

    Returns the encoder with its counts, the tokens of each training row (before the response, in the response), the
    number of held-out rows, and the numbers of rows that were left out.
    """
    train_set, held_out, encoder = encode(policy, data)
    lengths = [lengths_of(row, policy.config.slots) for row in train_set.encoded]
    return encoder, lengths, len(held_out), {"train": train_set.left_out, "eval": held_out.left_out}


def largest_batch(config: TrainConfig, lengths: Sequence[tuple[int, int]], budget: int, vocabulary: int) -> Batch:
    """The largest forward pass of the run.

    `lengths` are shuffled by the run's seed and divided into batches, which are divided into parts of `budget` tokens;
    a row is never divided.
    """
    shuffled = random.Random(config.seed).sample(lengths, len(lengths))
    chunks = [shuffled[start : start + config.batch_size] for start in range(0, len(shuffled), config.batch_size)]
    readers, sides = len(weighted_terms(config, [])), 1 if config.objective == "sft" else 2
    if POLICY_GRADIENT.holds(config):
        sides = config.candidates
    if config.prefix_tree:
        families = [[before + sides * response for before, response in chunk] for chunk in chunks]
        tokens = max(min(readers * sum(sizes), max(budget, *sizes)) for sizes in families)
        scored = max(sides * readers * sum(response for _, response in chunk) for chunk in chunks)
        return Batch(tokens, min(tokens, scored, max(1, CHUNK // vocabulary)))
    sizes = [(len(chunk), max(before for before, _ in chunk), max(end for _, end in chunk)) for chunk in chunks]
    count, before, response = max(sizes, key=lambda size: size[0] * (size[1] + size[2]))
    row = before + response
    rows = min(sides * readers * count, sides * max(1, budget // (sides * row)))
    return Batch(rows * row, rows * (response + 1), row)


def user_parameters(config: TrainConfig, users: int, width: int, blocks: int = 1) -> int:
    """Parameters of the user model (section 4.3, Examples 1 to 3), gates included, for `users` seen users."""
    return size_of(config, users, width, blocks).total


def idle_parameters(config: TrainConfig, users: int, width: int, steps: int, blocks: int = 1) -> tuple[int, int]:
    """Parameters of users who cannot all have rows: in one step, and in the run's `steps`."""
    row = size_of(config, users, width, blocks).per_user
    a_step = config.batch_size * config.accumulation  # a comparison is one user's
    return row * max(0, users - a_step), row * max(0, users - a_step * steps)


def available(device: torch.device) -> int:
    """Total memory of the device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
