"""`--format gguf`: a LoRA adapter for llama.cpp (`--lora FILE`), as its own convert_lora_to_gguf.py would write it.

The file names the architecture and the alpha of LoRA, and for each adapted weight NAME of the base's GGUF file it holds
NAME.lora_a [r, d_in] and NAME.lora_b [d_out, r] in fp32. In architectures of Llama's kind the rows of queries and keys
stand in another order there, since llama.cpp rotates neighbors where transformers rotates halves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

from prlhf.errors import PrlhfError
from prlhf.export.person import Person
from prlhf.train.final_model import public_name

FILE = "adapter.gguf"
# transformers' model_type -> llama.cpp's architecture, of those that tests compare with llama.cpp
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma": "gemma",
}
WEIGHT = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")


def write_gguf(person: Person, folder: Path) -> None:
    """Write adapter.gguf into the existing `folder`.

    Raises:
        PrlhfError: llama.cpp is not known to read adapters of this base, of a layer that is adapted, or of this kind.
    """
    if person.config.use_dora:
        raise PrlhfError("llama.cpp has no adapters of DoRA, with magnitudes of their own", "use peft or hf")
    config = person.base.lm.config
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise PrlhfError(f"no GGUF adapter for a base of the kind {config.model_type}", f"known: {known}; use peft")
    writer = gguf.GGUFWriter(folder / FILE, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(person.config))
    writer.add_name(f"{public_name(person.base.name)} for {person.user}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, value in _tensors(person, architecture):
        writer.add_tensor(name, value.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alpha(config: Any) -> float:
    """The alpha by which llama.cpp, which scales by alpha / rank, scales as `config` says."""
    return float(config.lora_alpha * (config.r**0.5 if config.use_rslora else 1))


def _tensors(person: Person, architecture: str) -> list[tuple[str, Tensor]]:
    config = person.base.lm.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    found = []
    for key, value in person.weights.items():
        read = WEIGHT.fullmatch(key)
        layer = read["layer"] if read else key
        name = names.get_name(layer)
        if read is None or name is None or not name.startswith("blk."):
            raise PrlhfError(
                f"llama.cpp takes no adapter of the layer {layer}", "train with other lora_targets, or use peft"
            )
        rotated = read["part"] == "B" and architecture == "llama"
        ours = _rotated(layer, value, config) if rotated else value
        found.append((f"{name}.weight.lora_{read['part'].lower()}", ours.detach().cpu()))
    return found


def _rotated(layer: str, b: Tensor, config: Any) -> Tensor:
    """B [d_out, r] with the rows of each head in llama.cpp's order, if it is of queries or keys.

    transformers rotates rows i and i + d/2 of a head together; llama.cpp rotates 2i and 2i + 1.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer.rpartition(".")[2])
    if heads is None:
        return b
    rows, rank = b.shape
    return b.view(heads, 2, rows // heads // 2, rank).transpose(1, 2).reshape(rows, rank)
