"""Fast kernels for language models. They know nothing of users, and nothing here is needed for a right result."""

from __future__ import annotations

from typing import Any

import torch

from prlhf.kernels import onednn, tree_attention


def speed_up(model: Any, device: torch.device) -> None:
    """Give a causal LM, or a PeftModel around one, the kernels for `device`, in place.

    Its attention can then read packs of prefix trees without a mask [T, T], and on a CPU its fp32 linear layers
    multiply through oneDNN. Call it once, after the adapter is in place and before the weights are sharded. A model
    that was not sped up gives the same values to rounding.
    """
    tree_attention.attend_over_packs(model.get_base_model() if hasattr(model, "get_base_model") else model)
    if device.type == "cpu":
        if hasattr(model, "peft_config"):
            from prlhf.kernels.lora import use_fast_lora  # PEFT takes long to import

            use_fast_lora(model)
        onednn.use_onednn(model)
