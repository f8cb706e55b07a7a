"""A base model without its weights: its shapes on the meta device, and its tokenizer.

Seconds for a model of any size, and nothing is written or converted; of a hub id only config and tokenizer are fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prlhf.model.base import Base, check_special_tokens, gguf_folder, in_cache, resolve_name
from prlhf.model.base_errors import INDEX, WHOLE, failures_named, gguf_failures_named


def load_skeleton(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> tuple[Base, list[str]]:
    """`name` as `load_base` takes it, with `lm` on the meta device and no fingerprint; and what of it is missing."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    location, options, missing = _find(name)
    options["trust_remote_code"] = trust_remote_code
    with gguf_failures_named(Path(name)) if "gguf_file" in options else failures_named(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
        config = transformers.AutoConfig.from_pretrained(location, **options)
        with torch.device("meta"):
            lm: Any = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    check_special_tokens(name, tokenizer, lm)
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    return Base(name, lm, tokenizer, ""), missing


def _find(name: str) -> tuple[str, dict[str, Any], list[str]]:
    """Where config and tokenizer are, how they are read, and what is not there yet, in words."""
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        converted = gguf_folder(path)
        if converted.is_dir():
            return str(converted), {}, []
        return str(path.parent), {"gguf_file": path.name}, [f"{name} will be converted on first use, to {converted}"]
    location = str(resolve_name(name))
    if Path(location).is_dir():
        there = any((Path(location) / file).is_file() for file in (WHOLE, INDEX))
        return location, {}, [] if there else [f"{name} holds no weights: training needs {WHOLE} there"]
    return location, {}, [] if in_cache(name) else [f"the weights of {name} are not downloaded yet"]
