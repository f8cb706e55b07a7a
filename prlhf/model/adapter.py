"""What of a base model is trained: a LoRA adapter, or all weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError, nearest, one_line


def make_trainable(lm: Any, config: TrainConfig) -> Any:
    """`lm` with all weights trainable, or a PeftModel around it. Dropout of the base itself is off, as in TRL."""
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
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return get_peft_model(lm, lora, autocast_adapter_dtype=True)
    except ValueError as error:
        raise PrlhfError(
            f"lora_targets = '{config.lora_targets}' fits no layer: {one_line(error)}",
            "name linear layers, or use --set lora_targets=all-linear",
        ) from error


def targets_of(lm: nn.Module, text: str) -> str | list[str]:
    """`all-linear`, or the names of modules in `text`, which commas separate.

    PEFT complains only where no name fits; half an adapter would go unnoticed. So each name that no module of `lm`
    ends with raises PrlhfError.
    """
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
    """Both kinds: modules, and the rates that OPT, GPT-NeoX and others hand to functions."""
    for module in lm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, 0.0)
