"""Load a base model: the bundled tiny one, a folder, a hub id, or a GGUF file (converted once and cached)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prlhf.config import cache_folder
from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir
from prlhf.model.base_errors import (
    INDEX,
    INSTEAD,
    WHOLE,
    check_complete,
    check_folder,
    check_gguf,
    check_hub_weights,
    check_weights,
    failures_named,
    gguf_failures_named,
    no_folder,
)
from prlhf.source import hub

TINY = Path(__file__).parent.parent / "assets" / "tiny-base"


@dataclass(frozen=True)
class Base:
    """A causal LM in evaluation mode with its tokenizer. `fingerprint` tells two bases apart."""

    name: str
    lm: Any
    tokenizer: Any
    fingerprint: str

    @property
    def context(self) -> int:
        """Longest sequence in tokens, as the model's config says (2048 where it does not)."""
        return int(getattr(self.lm.config, "max_position_embeddings", None) or 2048)


def pick_device(device: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises PrlhfError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise PrlhfError(f"device '{device}' is not known", "use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise PrlhfError(f"device '{device}' is asked for and this machine has no GPU", "set device to cpu")
    return chosen


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 on GPUs that have it, fp32 elsewhere (bf16 is slow on most CPUs)."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_base(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> Base:
    """Load `name`: `tiny`, a folder, a `.gguf` file or a hub id."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    location = str(resolve_name(name))
    options = {"trust_remote_code": trust_remote_code}
    with failures_named(name):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            location, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    lm, found = loaded
    check_complete(name, set(found["missing_keys"]))
    check_special_tokens(name, tokenizer, lm)
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    return Base(name, lm.to(device).eval(), tokenizer, fingerprint(lm))


def check_special_tokens(name: str, tokenizer: Any, lm: Any) -> None:
    """Refuse a tokenizer that cannot end a response.

    EOS is its padding where it has none, or one that `lm` has no embedding for: padding is masked.
    """
    if tokenizer.eos_token_id is None:
        raise PrlhfError(f"the tokenizer of {name} has no end-of-text token", "choose a model that has one")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= lm.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token_id = tokenizer.eos_token_id


def fingerprint(lm: Any) -> str:
    """16 hex digits from every parameter's name, shape and first values, the same in fp32 and bf16."""
    digest = hashlib.sha256()
    for name, parameter in lm.named_parameters():
        head = parameter.detach().flatten()[:16].to(torch.bfloat16).float().tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {head}".encode())
    return digest.hexdigest()[:16]


def resolve_name(name: str) -> Path | str:
    """A folder to load, or a hub id. Raises PrlhfError for a path that holds no model."""
    if name == "tiny":
        return TINY
    if name.endswith(".gguf"):
        return convert_gguf(Path(name).expanduser())
    path = Path(name).expanduser()
    if path.exists():
        check_folder(name, path)
        check_weights(name, {file.name for file in path.iterdir()})
        return path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise PrlhfError(f"no model at {name}{no_folder(path)}", "give a folder, a .gguf file or a hub id")
    if not in_cache(name) and not hub.is_offline():
        hub.probe("model", name, INSTEAD)
        check_hub_weights(name)
    return name


def in_cache(name: str) -> bool:
    """Whether the weights of a hub id are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    with failures_named(name):
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in (WHOLE, INDEX))


def gguf_folder(path: Path) -> Path:
    """Where in the cache a GGUF file's converted weights are or will be."""
    check_gguf(path)
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return cache_folder() / "gguf" / f"{path.stem}-{key}"


def convert_gguf(path: Path) -> Path:
    """Dequantize a GGUF file to a safetensors folder in the cache, once per content."""
    import transformers

    out = gguf_folder(path)
    if out.is_dir():
        return out
    with gguf_failures_named(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        lm: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
    # The loaded model still calls itself quantized, which forbids training and saving it.
    lm.hf_quantizer, lm.is_quantized = None, False
    for holder, name in ((lm.config, "quantization_config"), (lm, "quantization_method")):
        if hasattr(holder, name):
            delattr(holder, name)
    with atomic_dir(out) as folder:
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out
