"""Base models: load one with or without its weights, and make it trainable.

A base is the bundled tiny model, a folder, a hub id, or a GGUF file, which is converted once and cached.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.files import atomic_dir, cache_folder, sha256
from prlhf.model import quantized
from prlhf.model.base_errors import (
    INDEX,
    INSTEAD,
    WHOLE,
    check_complete,
    check_folder,
    check_gguf,
    check_hub_weights,
    check_safetensors,
    failures_named,
    gguf_failures_named,
    no_folder,
)
from prlhf.model.loading import bars_shown_by
from prlhf.progress import SILENT, Progress
from prlhf.source import hub

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, by transformers' names
NOTHING: Mapping[str, quantized.Head] = MappingProxyType({})
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
    """The device called `device`; `auto` is a GPU where there is one.

    Raises:
        PrlhfError: the name is not known, or this machine has no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise PrlhfError(f"device '{device}' is not known", "use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise PrlhfError(f"device = {device}, and this machine has no GPU", "set device to cpu")
    return chosen


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bf16 on GPUs that have it, fp32 elsewhere (bf16 is slow on most CPUs)."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_base(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
    quantize: str = "none",
    whole: bool = False,
) -> Base:
    """Load `name`: `tiny`, a folder, a `.gguf` file or a hub id.

    `quantize`: nf4 or int8, see quantized.py. `whole`: its linear layers are ordinary ones all the same, with weights
    as they were rounded; the fingerprint is always that of the base as it was stored.

    Raises:
        PrlhfError: the base cannot be loaded, or not as `quantize` says.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    location = str(resolve_name(name, progress))
    options = {"trust_remote_code": trust_remote_code}
    with failures_named(name), bars_shown_by(progress, f"loading {Path(name).name}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options)
        config = transformers.AutoConfig.from_pretrained(location, **options)
        as_said = quantized.reading_options(name, config, quantize, device, dtype)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            location, dtype=dtype, use_safetensors=True, output_loading_info=True, **options, **as_said
        )
    lm, found = loaded
    check_complete(name, set(found["missing_keys"]))
    check_special_tokens(name, tokenizer, lm)
    _freeze(lm)
    if quantize == "none":
        return Base(name, lm.to(device).eval(), tokenizer, fingerprint(lm))
    quantized.check_widths(name, lm, quantize, device)
    known = fingerprint(lm, quantized.heads_before(lm, location))
    quantized.settle(lm)
    if whole:
        quantized.dequantize(lm)
    return Base(name, lm.eval(), tokenizer, known)


def _freeze(lm: Any) -> None:
    for parameter in lm.parameters():
        parameter.requires_grad_(False)


def check_special_tokens(name: str, tokenizer: Any, lm: Any) -> None:
    """Refuse a tokenizer without an end-of-text token.

    It becomes the padding token too if the tokenizer has none, or one without an embedding in `lm`: padding is masked.
    """
    if tokenizer.eos_token_id is None:
        raise PrlhfError(f"the tokenizer of {name} has no end-of-text token", "choose a model that has one")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= lm.get_input_embeddings().weight.shape[0]:
        tokenizer.pad_token_id = tokenizer.eos_token_id


def fingerprint(lm: Any, before: Mapping[str, quantized.Head] = NOTHING) -> str:
    """16 hex digits from every parameter's name, shape and first values, the same in fp32 and bf16.

    `before`: shape and first values of parameters that were others in the base's files, by name.
    """
    digest = hashlib.sha256()
    for name, parameter in lm.named_parameters():
        shape, head = before.get(name) or (tuple(parameter.shape), parameter.detach().flatten()[: quantized.HEAD])
        digest.update(f"{name} {shape} {head.to(torch.bfloat16).float().tolist()}".encode())
    return digest.hexdigest()[:16]


def resolve_name(name: str, progress: Progress = SILENT) -> Path | str:
    """A folder to load, or a hub id. Raises PrlhfError for a path that holds no model."""
    if name == "tiny":
        return TINY
    if name.endswith(".gguf"):
        return convert_gguf(Path(name).expanduser(), progress)
    path = Path(name).expanduser()
    if path.exists():
        check_folder(name, path)
        check_safetensors(name, {file.name for file in path.iterdir()})
        return path
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise PrlhfError(f"no model at {name}{no_folder(path)}", "give a folder, a .gguf file or a hub id")
    if not in_cache(name) and not hub.is_offline():
        hub.probe("model", name, INSTEAD)
        check_hub_weights(name)
    return name


def in_cache(name: str) -> bool:
    """Whether the weights of the model with hub id `name` are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    with failures_named(name):
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in (WHOLE, INDEX))


def gguf_folder(path: Path) -> Path:
    """The folder in the cache for the converted weights of a GGUF file."""
    check_gguf(path)
    return cache_folder() / "gguf" / f"{path.stem}-{sha256(path)[:16]}"


def convert_gguf(path: Path, progress: Progress = SILENT) -> Path:
    """Dequantize a GGUF file to a safetensors folder in the cache, once per content."""
    import transformers

    out = gguf_folder(path)
    if out.is_dir():
        return out
    with gguf_failures_named(path), bars_shown_by(progress, f"converting {path.name}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        lm: Any = transformers.AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32
        )
    # The loaded model still says that it is quantized, which forbids training and saving it.
    lm.hf_quantizer, lm.is_quantized = None, False
    for holder, name in ((lm.config, "quantization_config"), (lm, "quantization_method")):
        if hasattr(holder, name):
            delattr(holder, name)
    with atomic_dir(out) as folder:
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


# ---- without weights ----


def load_skeleton(name: str, dtype: torch.dtype, trust_remote_code: bool = False) -> tuple[Base, list[str]]:
    """A base without its weights, and one line for each of its parts that is not on this machine yet.

    `name` is as for `load_base`. `lm` is on the meta device and there is no fingerprint. It takes seconds for a model
    of any size and converts nothing; of a hub id only config and tokenizer are downloaded.
    """
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
    _freeze(lm)
    return Base(name, lm, tokenizer, ""), missing


def _find(name: str) -> tuple[str, dict[str, Any], list[str]]:
    """Where config and tokenizer are, options for reading them, and a line for each part that is missing."""
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


# ---- trainable ----


def make_trainable(lm: Any, config: TrainConfig) -> Any:
    """`lm` with all weights trainable, or a PeftModel around it with a LoRA adapter.

    The base's own dropout is turned off, as in TRL.

    Raises:
        PrlhfError: `lora_targets` names modules that the base does not have.
    """
    _turn_off_dropout(lm)
    if config.full_finetune:
        for parameter in lm.parameters():
            parameter.requires_grad_(True)
        return lm
    from peft import LoraConfig, get_peft_model

    targets = targets_of(lm, config.lora_targets)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.lora_variant == "rslora",
        use_dora=config.lora_variant == "dora",
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT uses its old name
            torch.manual_seed(config.seed)
            return get_peft_model(lm, lora, autocast_adapter_dtype=True)
    except ValueError as error:
        raise PrlhfError(
            f"lora_targets = '{config.lora_targets}' fits no layer: {one_line(error)}",
            "name linear layers, or use --set lora_targets=all-linear",
        ) from error


def targets_of(lm: nn.Module, text: str) -> str | list[str]:
    """`all-linear`, or the names of modules in `text`, separated by commas.

    Raises PrlhfError for each name that no module of `lm` ends with: PEFT complains only if no name fits, and half an
    adapter would go unnoticed.
    """
    from transformers.pytorch_utils import Conv1D

    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all-linear"]:
        return "all-linear"
    modules = [f".{name}" for name, _ in lm.named_modules()]
    known = {name.rpartition(".")[2] for name, module in lm.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for name in names or [""]:
        if not name or not any(module.endswith(f".{name}") for module in modules):
            raise PrlhfError(
                f"lora_targets = '{text}': '{name}' fits no layer of the model",
                f"{nearest(name, known)} or --set lora_targets=all-linear",
            )
    return names


def _turn_off_dropout(lm: Any) -> None:
    """Turn off both kinds: modules, and the rates that OPT, GPT-NeoX and others pass to functions."""
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)


# ---- what its config says ----


def window_of(config: Any) -> int | None:
    """How many tokens a token looks at, including itself, in layers with a sliding window; None: no window."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and SLIDING not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)
