"""A model in shards over the workers (FSDP2): each has a part of every weight, and gathers a layer's when it runs it.

The user model and a reward model's head stay whole on every worker: of their rows a step needs few (workers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from prlhf.model import workers
from prlhf.model.personalized import Personalized, unwrapped


def shard(model: Personalized) -> None:
    """Shard the language model in place, a decoder layer at a time and then what is left of it.

    Parameters are others afterwards: an optimizer is to be made then. Every worker must run the model equally often.
    """
    lm = unwrapped(model.lm)
    layers = set(lm._no_split_modules or ())
    beside = {parameter for name, parameter in model.named_parameters() if not name.startswith("lm.")}
    mesh = init_device_mesh(lm.device.type, (workers.count(),))
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, ignored_params=beside)
    fully_shard(model, mesh=mesh, ignored_params=beside)
    model._is_accelerate_prepared = True  # type: ignore[assignment]  # accelerate would put DDP around it


@contextmanager
def gathered(model: Personalized) -> Iterator[None]:
    """The language model's trained weights whole, on the first worker's CPU, while the context lasts.

    This is what saving writes. All workers must enter; on a device one weight at a time is whole.
    """
    if isinstance(model, FSDPModule):
        model.to_save = _trained_weights(model.lm)
    try:
        yield
    finally:
        model.to_save = None


def _trained_weights(lm: nn.Module) -> dict[str, Tensor]:
    """By their names in `lm`'s state dict; weights that are one stay one. Only the first worker keeps them."""
    kept: dict[int, Tensor] = {}
    names: dict[str, int] = {}
    for name, weight in lm.state_dict(keep_vars=True).items():
        if weight.requires_grad or not hasattr(lm, "peft_config"):
            names[name] = id(weight)
            if id(weight) not in kept:
                kept[id(weight)] = on_first(weight.detach())
    return {name: kept[number] for name, number in names.items()}


def on_first(value: Any) -> Any:
    """A tensor whole on the first worker's CPU, and an empty one elsewhere; asked for by all of them."""
    if not isinstance(value, DTensor):
        return value
    found = value.full_tensor()
    return found.cpu() if workers.rank() == 0 else found.new_empty(0)
