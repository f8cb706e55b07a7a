"""Layers that take the place of others, with their parameters, submodules, hooks and mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=nn.Module)


def twin(layer: nn.Module, kind: type[Kind]) -> Kind:
    """A layer of class `kind` that shares everything with `layer`."""
    found = kind.__new__(kind)
    vars(found).update(vars(layer))
    return found


def replace_layers(model: nn.Module, instead: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put `instead(layer)` in the place of each layer inside `model` for which there is one."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if (found := instead(layer)) is not None:
                setattr(parent, name, found)
