"""An estimate of the memory of a training step.

Peak memory in bytes, of one process or of each worker, is estimated as the sum of

    weights        parameters of base, adapter, user model and head, each at its own width
    gradients      as many bytes as the trained parameters, of users' rows those of one step
    optimizer      AdamW's two moments: twice the trained parameters, of users' rows those of the whole run
    activations    T (layers + 1) [a (8 h + 4 f + L) + x]             all layers are kept for the backward pass
                   T (layers a h + a (8 h + 4 f + L) + x)             with gradient checkpointing: inputs, and one layer
    logits         S V (16 + [a < 4] a)                               forward in a, fp32 copy, backward's temporaries
    exchange       a bucket of gradients                              workers, ddp: what is sent in one message
                   root + 2 layer + their gradients                   workers, fsdp: what is gathered at one time

with a = bytes per number of the base (4 or 2), h its width, f the width inside its MLP, V its vocabulary. T are the
tokens of a forward pass, S those of them whose logits exist at a time, L the padded row (0 for prefix trees, which
have no mask), all of the largest forward pass found when the data is shuffled. A comparison is read as its user and
as the generic one: as prefix trees its prompt stands once for both responses, and logits come in chunks; padded it
makes four rows; a demonstration of supervised fine-tuning has one reader and one response. All are run in parts of
`pack_tokens`. x stands for what training itself keeps of the inputs of linear layers, per token and layer: with LoRA,
whose weights are fp32, on a GPU or a quantized base a copy of each adapted layer's input (4 bytes a number, nothing
when a = 4) and with dropout the dropped copy and its mask (4 + 4); else on a CPU with dropout the dropped copy and its
mask (a + 1). On a CPU with a = 2 comes what attention in fp32 keeps (8 h); all weights trained: 3 a h. Eager attention
keeps 6 bytes for each of heads x L probabilities more. A reward model has no logits.

Quantized weights (nf4, int8) count with their scales, packed; one layer's at a time is made again for its product, in
fp32 and in a.

N workers share a step's comparisons: each has batch_size / N of them in a forward pass. Under ddp each has all the
rest. Under fsdp (torch's fully_shard, on every decoder layer and on what is left, the root: embeddings, last norm and
head) weights, gradients and moments of base and adapter are divided by N; those of user model and reward head are
not. The root stays gathered from forward to backward, and of the layers the one that computes and the one that is
fetched meanwhile; gradients are whole until they are divided among the workers, layer by layer. To save a checkpoint
weights, and after them moments, are gathered one by one, onto the first worker's CPU. Before all this the first
worker has the whole base in its main memory, and hands it out a layer at a time.

Not counted: Python and its libraries, the CUDA context, NCCL's buffers, and what an allocator holds on to (measured on
CPUs: 0.8 to 1.4 times the tensors' own peak, 0.6 to 0.9 times what glibc makes of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.kernels.tree_attention import implementation_of
from prlhf.model import workers
from prlhf.model.base import Base
from prlhf.model.personalized import decoder_layers
from prlhf.model.quantized import packed_bytes

ALONE = ClusterConfig()  # one process, without Ray


@dataclass(frozen=True)
class Shape:
    """What the estimate needs of a model with its adapter; for the letters see the top of the module."""

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
    on_cpu: bool = True
    made: int = 0  # numbers of the largest quantized weight
    layer: tuple[int, int] = (
        0,
        0,
    )  # bytes of the largest decoder layer with its adapter; of them trained
    root: tuple[int, int] = (0, 0)  # the same for everything outside the decoder layers


@dataclass(frozen=True)
class Batch:
    """The size of a forward pass: tokens, tokens whose logits exist at a time, and the length of a padded row."""

    tokens: int
    scored: int
    row: int = 0


def memory(
    config: TrainConfig,
    shape: Shape,
    others: int,
    batch: Batch,
    idle: tuple[int, int] = (0, 0),
    cluster: ClusterConfig = ALONE,
) -> dict[str, float]:
    """Bytes by part, and as `peak` their sum.

    `others` are the parameters of user model and head, in fp32; `idle` of them have no gradient in a step, and no
    moments at the end.
    """
    shards = cluster.workers if cluster.workers > 1 and cluster.parallel == "fsdp" else 1
    trained = shape.trained_bytes / shards + 4 * others
    parts: dict[str, float] = {
        "weights": shape.weight_bytes / shards + 4 * others,
        "gradients": trained - 4 * idle[0],
        "optimizer": 2 * (trained - 4 * idle[1]),
        "activations": batch.tokens * _kept_per_token(config, shape, batch.row) + (4 + shape.a) * shape.made,
        "logits": _logits(config, shape, batch),
    }
    if shards == 1:
        largest = max(4 * workers.BUCKET, shape.a * shape.vocabulary * shape.h)  # the embeddings are one message
        exchange = {"exchange": min(shape.trained_bytes, largest)} if cluster.workers > 1 else {}
        return parts | exchange | {"peak": sum(parts.values()) + sum(exchange.values())}
    parts["exchange"] = sum(shape.root) + 2 * shape.layer[0] + shape.layer[1]
    return parts | {"peak": sum(parts.values())}


def _kept_per_token(config: TrainConfig, shape: Shape, length: int) -> float:
    if config.full_finetune:
        inputs = 3.0 * shape.a * shape.h
    else:
        inputs = _bytes_per_input(config, shape) * shape.adapted / shape.layers
    if shape.on_cpu and shape.a < 4:
        inputs += 8.0 * shape.h
    probabilities = 6 * shape.heads * length if shape.eager else 0
    layer = shape.a * (8 * shape.h + 4 * shape.f + length) + inputs + probabilities
    if config.gradient_checkpointing:
        return shape.layers * shape.a * shape.h + layer
    return (shape.layers + 1) * layer


def _bytes_per_input(config: TrainConfig, shape: Shape) -> int:
    if shape.on_cpu and not shape.made and config.lora_variant != "dora":  # else PEFT's own layers
        return 2 * shape.a if config.lora_dropout else 0
    if config.lora_dropout:
        return 8
    return 0 if shape.a == 4 else 4


def _logits(config: TrainConfig, shape: Shape, batch: Batch) -> int:
    each = 16 + (shape.a if shape.a < 4 else 0)
    if config.objective == "rm":
        return 0
    return batch.scored * shape.vocabulary * each


def shape_of(base: Base, lm: Any, device: torch.device, quantize: str = "none") -> Shape:
    """Read `base`'s config and count the parameters of `lm`, `base.lm` made trainable, for training on `device`.

    `lm` is not quantized; with `quantize` its weights are counted as if it were.
    """
    text = base.lm.config.get_text_config()
    inner = (getattr(text, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim"))
    trained = [p for p in lm.parameters() if p.requires_grad]
    packed = packed_bytes(base.lm, quantize)
    whole, layers = _bytes(lm, packed), [_bytes(layer, packed) for layer in decoder_layers(lm) or [lm]]
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
        eager=implementation_of(text) == "eager",
        on_cpu=device.type == "cpu",
        layer=max(layers),
        made=max((p.numel() for p in lm.parameters() if id(p) in packed), default=0),
        root=(whole[0] - sum(size for size, _ in layers), whole[1] - sum(size for _, size in layers)),
    )


def _bytes(module: Any, packed: Mapping[int, int]) -> tuple[int, int]:
    """Bytes of all parameters and of the trained ones; `packed` has those of quantized ones, by id."""
    sizes = [(packed.get(id(p), p.numel() * p.element_size()), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
