"""A model in shards over the workers (FSDP2): each has a part of every weight, and gathers a layer's when it runs it.

The user model and a reward model's head stay whole on every worker: of their rows a step needs few (workers.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

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
def whole(model: nn.Module) -> Iterator[None]:
    """All weights on every worker for as long as the context lasts, as for saving. To be entered by all of them."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
