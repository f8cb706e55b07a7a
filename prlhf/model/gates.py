"""Gates: users in the adapter. With a gate g_u in R^r a layer with LoRA computes W x + (alpha / r) B diag(g_u) A x.

The generic user's gate is 1 throughout, which is plain LoRA. So is everyone else's layer with diag(g_u) A in place of A
(`folded`): a person can be exported as an ordinary adapter. A gate serves all layers, or one decoder layer each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prlhf.errors import PrlhfError

A = ".lora_A.default"  # what the names of A's modules end with, by PEFT


class Gates:
    """Multiplies the output of A in all layers of `lm` by the `current` gates, those of the rows being read.

    A forward pass may be computed again in the backward pass, so what is current stays current until the next one.
    """

    def __init__(self, lm: nn.Module, layers: Sequence[nn.Module]) -> None:
        """`layers`: the decoder layers."""
        self.current: Tensor | None = None  # [1 or layers, rows, columns, r], either of rows and columns may be 1
        for block, module in a_modules(lm, layers):
            module.register_forward_hook(self._hook(block))

    def set(self, gates: Tensor | None, columns: Tensor | None = None) -> None:
        """Make `gates` [N, n, r] current: those of N rows, or of the trees of a pack whose `columns` [T] have them.

        `None`: 1 throughout.
        """
        if gates is not None:
            gates = gates.transpose(0, 1)  # [n, N, r]
            gates = gates.unsqueeze(2) if columns is None else gates.index_select(1, columns).unsqueeze(1)
        self.current = gates

    def _hook(self, block: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def multiply(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if self.current is None:
                return output
            if output.dim() != 3:
                raise PrlhfError(
                    "an adapted layer of this base reads tokens apart from their rows, so it cannot tell users apart",
                    "name other layers with --set lora_targets=q_proj,v_proj or so, or use --user-in prompt",
                )
            return output * self.current[block if len(self.current) > 1 else 0].to(output.dtype)

        return multiply


def a_modules(lm: nn.Module, layers: Sequence[nn.Module]) -> Iterator[tuple[int, nn.Module]]:
    """The modules A of LoRA in `lm`, each with the number of its decoder layer; what stands in none belongs to 0."""
    block_of = {id(module): block for block, layer in enumerate(layers) for module in layer.modules()}
    for name, module in lm.named_modules():
        if name.endswith(A):
            yield block_of.get(id(module), 0), module


@torch.no_grad()
def folded(lm: nn.Module, layers: Sequence[nn.Module], gate: Tensor) -> dict[str, Tensor]:
    """diag(g) A [r, d_in] for each A in `lm`, by the names of their weights; `gate` [1 or layers, r] is a user's g."""
    names = {id(module): name for name, module in lm.named_modules()}
    found = {}
    for block, module in a_modules(lm, layers):
        weight = module.get_parameter("weight")
        found[f"{names[id(module)]}.weight"] = weight * gate[block if len(gate) > 1 else 0].unsqueeze(1).to(weight)
    return found
