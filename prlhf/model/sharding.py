"""A model in shards over the workers (FSDP2): each has a part of every weight, and gathers a layer to run it.

Only the first worker reads the base, into its main memory, and sends it to the others one layer at a time: no other
worker and no device ever holds all of it. The user model and a reward model's head stay whole on every worker: a step
needs few of their rows (workers.py). Every worker must run the model equally often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from prlhf.model import workers
from prlhf.model.base import Base, load_base, load_skeleton
from prlhf.model.personalized import Personalized, PersonalizedLM, decoder_layers
from prlhf.progress import SILENT, Progress

M = TypeVar("M", bound=Personalized)


def load_spread_base(name: str, dtype: torch.dtype, trust_remote_code: bool, progress: Progress = SILENT) -> Base:
    """The base with its weights on the first worker's CPU; the others have its shapes, on the meta device.

    Raises:
        PrlhfError: on all workers, if one of them cannot read its part.
    """

    def read() -> Base:
        if workers.rank() == 0:
            return load_base(name, "cpu", dtype, trust_remote_code, progress)
        return load_skeleton(name, dtype, trust_remote_code)[0]

    base = workers.all_or_none(read)
    return replace(base, fingerprint=workers.from_first(base.fingerprint))


def shard(lm: Any, device: torch.device, make: Callable[[Any], M]) -> M:
    """The model that `make` builds on `lm`, in shards on `device`.

    `lm` is trainable and has its weights on the first worker; on the others it has only shapes. When `make` is called
    its layers are in shards, and the rest (embeddings, last norm, head) is whole on all workers; the rest stays whole
    from a forward pass to its backward pass.
    """
    mesh = init_device_mesh(device.type, (workers.count(),))
    for layer in decoder_layers(lm):
        _hand_out(layer, device)
        fully_shard(layer, mesh=mesh)
    _hand_out(lm, device)
    model = make(lm)
    beside = {parameter for name, parameter in model.named_parameters() if not name.startswith("lm.")}
    fully_shard(model, mesh=mesh, ignored_params=beside)
    register_fsdp_forward_method(model, "base_layers")
    if isinstance(model, PersonalizedLM):
        register_fsdp_forward_method(model, "reference")
    return model


def _hand_out(module: nn.Module, device: torch.device) -> None:
    """Copy the first worker's parameters, buffers and other tensors of `module` to every worker's `device`.

    What is already in shards is left alone; a tensor with two names stays one.
    """
    places: list[tuple[nn.Module, str, Tensor]] = [
        (part, name, value)
        for part in module.modules()
        for name, value in (
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
            *vars(part).items(),
        )
        if isinstance(value, Tensor) and not isinstance(value, DTensor)
    ]
    mine = [(name, tuple(value.shape)) for _, name, value in places]
    if any(theirs != mine for theirs in workers.gather(mine)):
        raise RuntimeError(f"the workers' {type(module).__name__} are not alike")
    dtypes = workers.from_first([value.dtype for _, _, value in places])
    found: dict[int, Tensor] = {}
    for (part, name, value), dtype in zip(places, dtypes, strict=True):
        if id(value) not in found:
            found[id(value)] = _handed_out(value, dtype, device)
        setattr(part, name, found[id(value)])


def _handed_out(value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The first worker's `value`, on every worker; the others pass in only its shape."""
    if workers.rank() == 0:
        data = value.detach().to(device).contiguous()
    else:
        data = torch.empty(value.shape, dtype=dtype, device=device)
    if data.numel():
        dist.broadcast(data.view(-1).view(torch.uint8), src=0)
    return nn.Parameter(data, value.requires_grad) if isinstance(value, nn.Parameter) else data


def in_shards(what: nn.Module | Tensor) -> bool:
    """Whether the workers hold shards of this model, or of this weight."""
    return isinstance(what, FSDPModule | DTensor)


def let_go(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass left whole: all parameters are shards again."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def gathered(model: Personalized) -> Iterator[None]:
    """Inside the context, the language model's trained weights are whole on the first worker's CPU, to be saved.

    All workers must enter; on a device one weight at a time is whole.
    """
    if in_shards(model):
        let_go(model)
        model.to_save = _trained_weights(model.lm)
    try:
        yield
    finally:
        model.to_save = None


def _trained_weights(lm: nn.Module) -> dict[str, Tensor]:
    """The trained weights by their names in `lm`'s state dict; a shared weight stays one. Only the first keeps them."""
    kept: dict[int, Tensor] = {}
    names: dict[str, int] = {}
    for name, weight in lm.state_dict(keep_vars=True).items():
        if weight.requires_grad or not hasattr(lm, "peft_config"):
            names[name] = id(weight)
            if id(weight) not in kept:
                kept[id(weight)] = on_first(weight.detach())
    return {name: kept[number] for name, number in names.items()}


def on_first(value: Any) -> Any:
    """The whole tensor on the first worker's CPU, an empty one on the others; all workers must call it."""
    if not isinstance(value, DTensor):
        return value
    found: Tensor = value.full_tensor()
    found = found.detach()
    return found.cpu() if workers.rank() == 0 else found.new_empty(0)


def as_shards_of(parameter: Tensor, value: Tensor) -> Tensor:
    """This worker's shard of `value`, which all workers have whole, if `parameter` is in shards; else all of it."""
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None).clone()
