"""LoRA layers on CPUs: W x + B (s A x) with each product in the number format of the base.

Beside a base in bf16, PEFT computes the adapter in fp32: each layer copies its input, multiplies in fp32, scales, adds
and rounds again, which takes longer than the adapter's products. Here the adapter's fp32 weights are rounded for the
product, as in mixed precision; they are kept, and their gradients summed up, in fp32. B's product is added to W x as it
is computed. Beside a base in fp32 nothing is rounded. The factor s is applied to the r numbers of A x, not to the whole
result. Hooks of A act; in bf16, those of B do not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn
from typing_extensions import override

from prlhf.kernels.twins import replace_layers, twin


def use_fast_lora(model: nn.Module) -> None:
    """Replace PEFT's LoRA layers in `model` by ones with their parameters, submodules, hooks and mode."""
    replace_layers(model, _instead)


def _instead(layer: nn.Module) -> FastLora | None:
    if type(layer) is not Linear:
        return None
    if layer.weight.dtype != torch.float32:
        for parts in (layer.get_submodule("lora_A"), layer.get_submodule("lora_B")):
            replace_layers(parts, lambda part: twin(part, RoundedLinear))
    return twin(layer, FastLora)


class FastLora(Linear):  # type: ignore[misc]
    """A LoRA layer; what is not plain LoRA (DoRA, a bias, several adapters, merged or turned off) is left to PEFT."""

    @override
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or options or not self._plain() or not self._takes(x):
            return super().forward(x, *args, **options)  # type: ignore[no-any-return]
        (name,) = self.active_adapters
        low = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        part, base = self.lora_B[name], self.base_layer
        if not isinstance(part, RoundedLinear):
            return base(x) + part(low)  # type: ignore[no-any-return]
        whole = base(x.flatten(0, -2))  # rows: no view, so that the adapter's product can be added in place
        whole.addmm_(low.flatten(0, -2), part.weight.to(low.dtype).t())
        return whole.view(*x.shape[:-1], whole.shape[-1])  # type: ignore[no-any-return]

    def _takes(self, x: Tensor) -> bool:
        """Whether the active adapter multiplies in the format of `x`: one that was loaded later does not round."""
        part = self.lora_A[self.active_adapters[0]]
        return isinstance(part, RoundedLinear) or bool(part.weight.dtype == x.dtype)

    def _plain(self) -> bool:
        active = self.active_adapters
        return (
            not self.disable_adapters
            and not self.merged
            and len(active) == 1
            and active[0] in self.lora_A
            and active[0] not in self.lora_variant
            and self.lora_B[active[0]].bias is None
        )


class RoundedLinear(nn.Linear):
    """A linear layer with fp32 weights that are rounded to the format of its input for the product."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), self.bias)
