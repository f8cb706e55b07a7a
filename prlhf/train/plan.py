"""What a training run would do and need: steps, lengths, parameters and memory, without loading or training anything.

Peak memory in bytes, of one process or of each worker, is estimated as the sum of

    weights        parameters of base, adapter, user model and head, each at its own width
    gradients      as many bytes as the trained parameters, of users' rows those of one step
    optimizer      AdamW's two moments: twice the trained parameters, of users' rows those met in the whole run
    activations    T (layers + 1) [a (8 h + 4 f + L) + x]             all layers are kept for the backward pass
                   T (layers a h + a (8 h + 4 f + L) + x)             with gradient checkpointing: inputs, and one layer
    logits         S V (16 + [a < 4] a)                               forward in a, fp32 copy, backward's temporaries
    exchange       trained parameters of base and adapter             workers, ddp: the buckets gradients are sent in
                   root + 2 layer + their gradients                   workers, fsdp: what is gathered at a time

with a = bytes per number of the base (4 or 2), h its width, f the width inside its MLP, V its vocabulary. T are the
tokens of a forward pass, S those of them whose logits exist at a time, L the padded row (0 for prefix trees, which
have no mask), all of the largest forward pass found when the data is shuffled. A comparison is read as its user and
as the generic one: as prefix trees its prompt stands once for both responses, and logits come in chunks; padded it
makes four rows. Either is run in parts of `pack_tokens`. A demonstration of supervised fine-tuning is one row. x
stands for what training itself keeps of the inputs of linear layers, per token and layer: with LoRA, whose weights
are fp32, a copy of each adapted layer's input (4 bytes a number, nothing when a = 4) and with dropout the dropped
copy and its mask (4 + 4); all weights trained: 3 a h. Eager attention keeps 6 bytes for each of heads x L
probabilities more. TRL scores demonstrations in pieces of at most 4096 tokens x 32768 words; a reward model has no
logits.

N workers share a step's comparisons: each has batch_size / N of them in a forward pass. Under ddp each has all the
rest. Under fsdp (torch's fully_shard, on every decoder layer and on what is left, the root: embeddings, last norm and
head) weights, gradients and moments of base and adapter are divided by N; those of user model and reward head are
not. The root stays gathered from forward to backward, and of the layers the one that computes and the one that is
fetched meanwhile; gradients are whole until they are divided among the workers, layer by layer. To save a checkpoint
all have the whole weights beside their own, and the first one the whole moments: the peak, where that is more than a
step takes. (Each has loaded the whole base before, without any of this.)

Not counted: Python and its libraries, the CUDA context, NCCL's buffers, and what an allocator holds on to (measured on
CPUs: 0.8 to 1.4 times the tensors' own peak, 0.6 to 0.9 times what glibc makes of it).
"""

from __future__ import annotations

import heapq
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.model.adapter import make_trainable
from prlhf.model.base import Base, pick_device, pick_dtype
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoder
from prlhf.model.engine import budget_on
from prlhf.model.log_probs import CHUNK
from prlhf.model.personalized import trunk_of
from prlhf.model.skeleton import load_skeleton
from prlhf.progress import SILENT, Progress
from prlhf.records import Comparison, read_prepared
from prlhf.train.batching import weighted_terms
from prlhf.train.demonstrations import demonstrations, distinct
from prlhf.train.on_ray import check_share
from prlhf.train.run import check_data, check_new, with_base, without_users

SAMPLE, LONGEST = 2000, 100  # rows looked at: evenly spread, and those of the most characters
GIB = 2**30
ALONE = ClusterConfig()  # one process, without Ray


@dataclass(frozen=True)
class Shape:
    """What the estimate reads of a model that has been made trainable; see the module's heading."""

    layers: int
    h: int
    f: int
    heads: int
    vocabulary: int
    a: int  # bytes per number of the base
    parameters: int  # of the base
    weight_bytes: int  # of base and adapter
    trained: int
    trained_bytes: int
    adapted: int  # inputs of all adapted linear layers together; 0 when all weights are trained
    eager: bool
    layer: tuple[int, int] = (0, 0)  # bytes of the largest decoder layer with its adapter, and of what is trained there
    root: tuple[int, int] = (0, 0)  # the same of all that is in no decoder layer


@dataclass(frozen=True)
class Batch:
    """The size of a forward pass: tokens, tokens whose logits exist at a time, and the length of a padded row."""

    tokens: int
    scored: int
    row: int = 0


def plan(config: TrainConfig, progress: Progress = SILENT, cluster: ClusterConfig = ALONE) -> dict[str, Any]:
    """Check settings, data, model and run folder as `train` would, and say what it would do. Writes nothing.

    Raises PrlhfError wherever `train` would refuse to begin, but for a GPU that is not here: the plan of a run on
    other machines can be made on this one. Memory is that of one worker.
    """
    data = read_prepared(Path(config.dataset))
    config = with_base(without_users(config), data)
    check_data(config, data, progress)
    check_share(config, cluster)
    check_new(config.folder)
    device, dtype, elsewhere = device_of(config, cluster)
    base, missing = load_skeleton(str(config.model), dtype, config.trust_remote_code)
    lm = make_trainable(base.lm, config)
    if config.objective == "rm":
        trunk_of(lm)
    encoder = Trained(lm, base, config, data.user_ids, {}).encoder()
    rows = distinct(data.train) if config.objective == "sft" else data.train
    looked_at, lengths, cut = look_at(config, encoder, rows)
    shape = shape_of(base, lm)
    users = user_parameters(config, len(data.user_ids), shape.h)
    head = shape.h if config.objective == "rm" else 0
    idle = idle_parameters(config, len(data.user_ids), shape.h, steps(config, len(rows)))

    def parts(config: TrainConfig, cluster: ClusterConfig) -> dict[str, float]:
        budget = budget_on(device, config.pack_tokens)
        batch = largest_batch(share_of(config, cluster), lengths, budget, shape.vocabulary)
        return memory(config, shape, users + head, batch, idle, cluster)

    by_part = parts(config, cluster)
    others = ((flag, parts(*changed)["peak"]) for flag, changed in changes(config, cluster, device))
    return {
        "run": str(config.folder),
        "settings": config.model_dump(mode="json"),
        "device": device.type,
        "precision": "bf16" if shape.a == 2 else "fp32",
        "workers": cluster.workers,
        "parallel": cluster.parallel if cluster.workers > 1 else None,
        "users": len(data.user_ids),
        "train": len(rows),
        "eval": len(data.eval[: config.eval_limit]),
        "steps": steps(config, len(rows)),
        "rows_per_step": config.batch_size * config.accumulation,
        "looked_at": looked_at,
        "tokens_mean": sum(before + response for before, response in lengths[:looked_at]) / looked_at,
        "tokens_max": max(before + response for before, response in lengths),
        "tokens_allowed": encoder.limit,
        "cut": cut,
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
    """Where a run would be and in which precision; and, in words, that this machine has no such device.

    Workers that are given GPUs are on GPUs. One that is not here is taken to have bf16.
    """
    wanted = config.device
    if wanted == "auto" and cluster.workers and cluster.gpus_per_worker:
        wanted = "cuda"
    if not wanted.startswith("cuda") or torch.cuda.is_available():
        device = pick_device(wanted)
        return device, pick_dtype(config.precision, device), []
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    return torch.device("cuda"), dtype, ["this machine has no GPU: the plan is for one elsewhere, of unknown memory"]


def share_of(config: TrainConfig, cluster: ClusterConfig) -> TrainConfig:
    """`config` with the comparisons that one worker has in a forward pass."""
    return config.model_copy(update={"batch_size": math.ceil(config.batch_size / max(1, cluster.workers))})


def changes(
    config: TrainConfig, cluster: ClusterConfig, device: torch.device
) -> Iterator[tuple[str, tuple[TrainConfig, ClusterConfig]]]:
    """Settings that change the memory of a worker and not what is learned, each as a flag and alone."""
    budget, workers = budget_on(device, config.pack_tokens), max(1, cluster.workers)
    toggled = not config.gradient_checkpointing
    found: dict[str, dict[str, Any]] = {
        f"--set gradient_checkpointing={str(toggled).lower()}": {"gradient_checkpointing": toggled},
        f"--set pack_tokens={max(1, budget // 2)}": {"pack_tokens": max(1, budget // 2)},
    }
    if config.batch_size % 2 == 0 and config.batch_size // 2 >= workers:
        half = {"batch_size": config.batch_size // 2, "accumulation": 2 * config.accumulation}
        found["--batch-size {batch_size} --accumulation {accumulation}".format(**half)] = half
    for flag, change in found.items():
        yield flag, (config.model_copy(update=change), cluster)
    if workers > 1:
        other = "ddp" if cluster.parallel == "fsdp" else "fsdp"
        yield f"--parallel {other}", (config, cluster.model_copy(update={"parallel": other}))
    if config.objective != "sft" and config.batch_size >= 2 * workers:
        yield f"--workers {2 * workers}", (config, cluster.model_copy(update={"workers": 2 * workers}))


def steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of the run, as transformers counts them."""
    per_epoch = math.ceil(math.ceil(rows / config.batch_size) / config.accumulation)
    return config.max_steps or math.ceil(config.epochs * per_epoch)


def look_at(
    config: TrainConfig, encoder: Encoder, rows: Sequence[Comparison]
) -> tuple[int, list[tuple[int, int]], dict[str, int]]:
    """How many rows were looked at, their tokens (before the response, in it) and what was cut of them.

    After them in the list stand those of the longest rows, where a prompt that is too long is found.
    """
    spread = rows[:: math.ceil(len(rows) / SAMPLE)]
    lengths = _lengths(config, encoder, spread)
    cut = dict(encoder.cut)
    if len(spread) < len(rows):
        lengths += _lengths(config, encoder, heapq.nlargest(LONGEST, rows, key=_characters))
    return len(spread), lengths, cut


def _lengths(config: TrainConfig, encoder: Encoder, rows: Sequence[Comparison]) -> list[tuple[int, int]]:
    if config.objective == "sft":
        return [(len(row.prompt), len(row.response)) for row in demonstrations(encoder, rows)]
    found = [encoder.comparison(row) for row in rows]
    return [(config.user_tokens + len(e.text + e.prompt), max(len(e.chosen), len(e.rejected))) for e in found]


def _characters(row: Comparison) -> int:
    return len(row.user_text) + len(str(row.prompt)) + max(len(str(row.chosen)), len(str(row.rejected)))


def largest_batch(config: TrainConfig, lengths: Sequence[tuple[int, int]], budget: int, vocabulary: int) -> Batch:
    """The largest forward pass when `lengths` are shuffled by the run's seed and cut into batches, and these into
    parts of `budget` tokens; a comparison is never cut."""
    shuffled = random.Random(config.seed).sample(lengths, len(lengths))
    chunks = [shuffled[start : start + config.batch_size] for start in range(0, len(shuffled), config.batch_size)]
    readers = len(weighted_terms(config, []))
    if config.objective != "sft" and config.prefix_tree:
        families = [[before + 2 * response for before, response in chunk] for chunk in chunks]
        tokens = max(min(readers * sum(sizes), max(budget, *sizes)) for sizes in families)
        scored = max(2 * readers * sum(response for _, response in chunk) for chunk in chunks)
        return Batch(tokens, min(tokens, scored, max(1, CHUNK // vocabulary)))
    sizes = [(len(chunk), max(before for before, _ in chunk), max(end for _, end in chunk)) for chunk in chunks]
    count, before, response = max(sizes, key=lambda size: size[0] * (size[1] + size[2]))
    row = before + response
    if config.objective == "sft":
        return Batch(count * row, count * row, row)
    rows = min(2 * readers * count, 2 * max(1, budget // (2 * row)))
    return Batch(rows * row, rows * (response + 1), row)


def shape_of(base: Base, lm: Any) -> Shape:
    """Read `base`'s config and count the parameters of `lm`, which is `base.lm` made trainable."""
    text = base.lm.config.get_text_config()
    inner = (getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
    trained = [p for p in lm.parameters() if p.requires_grad]
    whole, layers = _bytes(lm), [_bytes(layer) for layer in _decoder_layers(lm, text.num_hidden_layers)]
    adapter = sum(p.numel() for name, p in lm.named_parameters() if "lora_" in name)
    return Shape(
        layers=text.num_hidden_layers,
        h=text.hidden_size,
        f=next((width for width in inner if width), 4 * text.hidden_size),
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
        a=base.lm.dtype.itemsize,
        parameters=sum(p.numel() for p in lm.parameters()) - adapter,
        weight_bytes=whole[0],
        trained=sum(p.numel() for p in trained),
        trained_bytes=whole[1],
        adapted=sum(module.in_features for module in lm.modules() if hasattr(module, "lora_A")),
        eager=text._attn_implementation == "eager",
        layer=max(layers),
        root=(whole[0] - sum(size for size, _ in layers), whole[1] - sum(size for _, size in layers)),
    )


def _bytes(module: Any) -> tuple[int, int]:
    """Of all parameters, and of those that are trained."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _decoder_layers(lm: Any, count: int) -> Sequence[Any]:
    """The list of `count` modules that holds most parameters; without one all counts as a single layer."""
    found = [m for m in lm.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    return list(max(found, key=_bytes)) if found else [lm]


def user_parameters(config: TrainConfig, users: int, width: int) -> int:
    """Parameters of the user model (section 4.3, Examples 1 to 3) for `users` seen users."""
    vectors = config.user_tokens * width
    if config.user_model == "uniform":
        return vectors
    if config.user_model == "individual":
        return vectors * (1 + users)
    return config.k * (vectors + 1 + users)


def idle_parameters(config: TrainConfig, users: int, width: int, steps: int) -> tuple[int, int]:
    """Parameters in the rows of users who cannot all be met: in one step, and in the run's `steps`."""
    row = {"uniform": 0, "individual": config.user_tokens * width, "cluster": config.k}[config.user_model]
    a_step = config.batch_size * config.accumulation  # a comparison is one user's
    return row * max(0, users - a_step), row * max(0, users - a_step * steps)


def memory(
    config: TrainConfig,
    shape: Shape,
    others: int,
    batch: Batch,
    idle: tuple[int, int] = (0, 0),
    cluster: ClusterConfig = ALONE,
) -> dict[str, float]:
    """Bytes by part, and as `peak` their sum, or what saving takes where that is more.

    `others` are the parameters of user model and head, in fp32, of which `idle` have no gradient in a step, and no
    moments at the end.
    """
    shards = cluster.workers if cluster.workers > 1 and cluster.parallel == "fsdp" else 1
    trained = shape.trained_bytes / shards + 4 * others
    parts: dict[str, float] = {
        "weights": shape.weight_bytes / shards + 4 * others,
        "gradients": trained - 4 * idle[0],
        "optimizer": 2 * (trained - 4 * idle[1]),
        "activations": batch.tokens * _kept_per_token(config, shape, batch.row),
        "logits": _logits(config, shape, batch),
    }
    if shards == 1:
        exchange = {"exchange": shape.trained_bytes} if cluster.workers > 1 else {}
        return parts | exchange | {"peak": sum(parts.values()) + sum(exchange.values())}
    parts["exchange"] = sum(shape.root) + 2 * shape.layer[0] + shape.layer[1]
    saving = shape.weight_bytes + parts["weights"] + 2 * shape.trained_bytes + parts["optimizer"]
    return parts | {"saving": saving, "peak": max(sum(parts.values()), saving)}


def _kept_per_token(config: TrainConfig, shape: Shape, length: int) -> float:
    if config.full_finetune:
        inputs = 3.0 * shape.a * shape.h
    else:
        bytes_each = 8 if config.lora_dropout else 0 if shape.a == 4 else 4
        inputs = bytes_each * shape.adapted / shape.layers
    probabilities = 6 * shape.heads * length if shape.eager else 0
    layer = shape.a * (8 * shape.h + 4 * shape.f + length) + inputs + probabilities
    if config.gradient_checkpointing:
        return shape.layers * shape.a * shape.h + layer
    return (shape.layers + 1) * layer


def _logits(config: TrainConfig, shape: Shape, batch: Batch) -> int:
    each = 16 + (shape.a if shape.a < 4 else 0)
    if config.objective == "rm":
        return 0
    if config.objective == "sft":
        return min(batch.scored, 4096) * min(shape.vocabulary, 32768) * each
    return batch.scored * shape.vocabulary * each


def available(device: torch.device) -> int:
    """Bytes of memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
