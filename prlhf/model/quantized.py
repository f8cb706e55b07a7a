"""A base with its linear layers in 4 or 8 bits per weight, by bitsandbytes: QLoRA (arXiv 2305.14314).

`nf4` keeps 64 weights with a scale, and the scales in 8 bits themselves ("double quantization"); `int8` keeps each
output's weights with a scale. Everything else of the base stays as it was: embeddings, norms and the vocabulary's head.
A layer makes its weights again for each product, in the precision of the base, and activations are not rounded. So a
row's values do not depend on what else is in the batch, and training and evaluation read the same base. bitsandbytes'
own int8 product rounds activations too, on CPUs in evaluation only, so it is not used.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from typing_extensions import override

from prlhf.errors import PrlhfError
from prlhf.kernels.twins import replace_layers, twin
from prlhf.model.base_errors import INDEX, WHOLE
from prlhf.parse import json_value

BLOCK, SCALES = 64, 256  # weights with a scale of their own in nf4, and scales with one
TABLES = 4 * (16 + 256 + 1)  # bytes beside them in each layer: nf4's values, those of the scales, their mean
HEAD = 16  # first values of a weight that are part of a fingerprint

# when PEFT imports it, quantized or not, it warns of kernels that it would get from the hub
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

Head = tuple[tuple[int, ...], Tensor]  # shape and first values of a weight


def check_package(quantize: str) -> None:
    """Refuse to quantize without bitsandbytes, before anything is read."""
    if quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise PrlhfError(f"quantize = {quantize} needs the package bitsandbytes", "pip install 'prlhf[quantize]'")


def reading_options(name: str, config: Any, quantize: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """What transformers' `from_pretrained` takes to read the base `name`, with this config, as `quantize` says.

    Raises:
        PrlhfError: bitsandbytes is missing, or the base is quantized already.
    """
    if quantize == "none":
        return {}
    check_package(quantize)
    if getattr(config, "quantization_config", None) is not None:
        raise PrlhfError(f"quantize = {quantize}: {name} is quantized already", "leave quantize out")
    from transformers import BitsAndBytesConfig

    four: Any = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }
    how = BitsAndBytesConfig(**four) if quantize == "nf4" else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": how, "device_map": {"": torch.device(device)}}


def check_widths(name: str, lm: Any, quantize: str, device: torch.device | str) -> None:
    """Refuse layers that bitsandbytes 0.50 reads wrongly: on CPUs a block of nf4 must not reach over a row's end."""
    if quantize != "nf4" or torch.device(device).type != "cpu":
        return
    for layer in _linear_layers(lm):
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.weight.shape[0]
        if width % BLOCK:
            raise PrlhfError(
                f"quantize = nf4 needs layers of a multiple of {BLOCK} inputs on a CPU, and one of {name} has {width}",
                "use int8",
            )


def settle(lm: Any) -> None:
    """Let the quantized layers of `lm` multiply by the same weights in training and in evaluation, in place."""
    import bitsandbytes as bnb

    for layer in lm.modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # else it packs its weights again, and rounds inputs to bf16
    kind = _int8_layer()
    replace_layers(lm, lambda layer: twin(layer, kind) if isinstance(layer, bnb.nn.Linear8bitLt) else None)


def dequantize(lm: Any) -> None:
    """Make ordinary linear layers of the quantized ones of `lm`, in place, with the weights as they were rounded."""
    from transformers.pytorch_utils import Conv1D

    turned = [name for name, module in lm.named_modules() if getattr(module, "source_cls", None) is Conv1D]
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        lm.dequantize(lm.dtype)
    finally:
        logger.setLevel(level)
    for name in turned:
        lm.set_submodule(name, _conv(lm.get_submodule(name)))
    for parameter in lm.parameters():
        parameter.requires_grad_(False)


def _conv(layer: Any) -> Any:
    """GPT-2's kind of linear layer, whose weight is [in, out], with the weights of an ordinary one."""
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        found = Conv1D(layer.out_features, layer.in_features)
    found.weight, found.bias = nn.Parameter(layer.weight.detach().t().contiguous()), layer.bias
    return found


# ---- int8 ----


@cache
def _int8_layer() -> Any:
    """The class of such layers, of bitsandbytes' own kind, since PEFT looks at that."""
    import bitsandbytes as bnb

    class Int8Linear(bnb.nn.Linear8bitLt):  # type: ignore[misc]
        @override
        def forward(self, x: Tensor) -> Tensor:
            return _Int8Product.apply(x, self.weight.data, self.weight.SCB, self.bias)  # type: ignore

    return Int8Linear


class _Int8Product(torch.autograd.Function):
    """x W^T + b for frozen W = diag(scales) codes / 127; W is made again in the backward pass, and not kept."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.codes, ctx.scales = codes, scales
        return F.linear(x, _weights(codes, scales, x.dtype), bias)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad @ _weights(ctx.codes, ctx.scales, grad.dtype), None, None, None


def _weights(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    found: Tensor = int8_vectorwise_dequant(codes, scales)
    return found.to(dtype)


# ---- what tells bases apart ----


def scales(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What belongs to the quantized weights of `lm` and is neither a parameter nor a buffer, each with a name."""
    for name, parameter in lm.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            found = state.as_dict(packed=True)
        elif (scale := getattr(parameter, "SCB", None)) is not None:
            found = {"scales": scale}
        else:
            continue
        yield from ((f"{name}.{key}", value) for key, value in sorted(found.items()))


def heads_before(lm: Any, location: str) -> dict[str, Head]:
    """Shape and first values of each weight of `lm` that is quantized, by its name, as the files at `location` have it.

    A weight that has another name in the files, without the model's prefix aside, has no values.
    """
    files = _files_of(location)
    found: dict[str, Head] = {}
    for name, module in lm.named_modules():
        if not is_quantized(getattr(module, "weight", None)):
            continue
        key = f"{name}.weight"
        stored = next((one for one in (key, key.removeprefix(f"{lm.base_model_prefix}.")) if one in files), None)
        shape = (module.out_features, module.in_features)
        found[key] = (shape, torch.empty(0)) if stored is None else _head(files[stored], stored)
    return found


def is_quantized(weight: Any) -> bool:
    """Whether bitsandbytes holds this weight."""
    return hasattr(weight, "quant_state") or hasattr(weight, "SCB")


def _head(file: Path, name: str) -> Head:
    with safe_open(file, "pt") as opened:
        part = opened.get_slice(name)
        rows, columns = part.get_shape()
        return (rows, columns), part[: math.ceil(HEAD / columns)].flatten()[:HEAD]


def _files_of(location: str) -> Mapping[str, Path]:
    """The file of each weight of a model that has been read from `location`, a folder or a hub id."""
    whole = _file(location, WHOLE)
    if whole is not None:
        with safe_open(whole, "pt") as opened:
            return dict.fromkeys(opened.keys(), whole)
    index = _file(location, INDEX)
    assert index is not None
    return {name: index.parent / file for name, file in json_value(index.read_bytes())["weight_map"].items()}


def _file(location: str, name: str) -> Path | None:
    if Path(location).is_dir():
        return Path(location) / name if (Path(location) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(location, name)
    return Path(found) if isinstance(found, str) else None


# ---- memory ----


def packed_bytes(lm: Any, quantize: str) -> dict[int, int]:
    """Bytes of each weight of the base `lm` that would be quantized, by its id; scales included."""
    if quantize == "none":
        return {}
    return {
        id(layer.weight): _packed(layer.weight.numel(), layer.weight.shape[not isinstance(layer, nn.Linear)], quantize)
        for layer in _linear_layers(lm)
        if not layer.weight.requires_grad
    }


def _linear_layers(lm: Any) -> list[Any]:
    """All but the vocabulary's head."""
    from transformers.pytorch_utils import Conv1D

    head = lm.get_output_embeddings()
    return [module for module in lm.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]


def _packed(numbers: int, outputs: int, quantize: str) -> int:
    if quantize == "int8":
        return numbers + 4 * outputs
    blocks = math.ceil(numbers / BLOCK)
    return math.ceil(numbers / 2) + blocks + 4 * math.ceil(blocks / SCALES) + TABLES
