"""A run's language model as a whole: base and adapter, with a user's gates, in one set of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prlhf.config import GenerateConfig
from prlhf.export.template import template_of
from prlhf.generate.decoding import turn_end
from prlhf.model.checkpoint import Policy
from prlhf.model.gates import folded
from prlhf.model.personalized import decoder_layers


def merged(policy: Policy, user_index: int = 0) -> Any:
    """The causal LM of `policy` with its adapter merged, as the gates of `user_index` fold it. `policy` is used up."""
    lm, gates = policy.model.lm, policy.model.users.gates
    if gates is not None:
        with torch.no_grad():
            gate = 1 + gates(torch.tensor([user_index], device=policy.device))[0]
        lm.load_state_dict(folded(lm, decoder_layers(lm), gate), strict=False)
        policy.model.act_as(None)
    return lm.merge_and_unload() if hasattr(lm, "merge_and_unload") else lm


def ends_of(policy: Policy) -> list[int]:
    """The tokens that end a response, as `prlhf generate` ends one."""
    return sorted(turn_end(policy, GenerateConfig()).ids)


def write_whole(lm: Any, tokenizer: Any, ends: list[int], dtype: torch.dtype, folder: Path) -> None:
    """Write a model and its tokenizer as transformers does, so that its `generate` ends where prlhf's does."""
    if lm.generation_config is not None:
        lm.generation_config.eos_token_id = ends
    lm.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_merged(policy: Policy, user_index: int, dtype: torch.dtype, folder: Path) -> Any:
    """Write the model of a user, with the chat template as the run reads it; returns the model. `policy` is used up."""
    tokenizer, ends = policy.tokenizer, ends_of(policy)
    tokenizer.chat_template = template_of(policy)
    lm = merged(policy, user_index)
    write_whole(lm, tokenizer, ends, dtype, folder)
    return lm


def read_whole(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """What was written, by plain transformers: model and tokenizer."""
    import transformers

    lm: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
    return lm.eval(), transformers.AutoTokenizer.from_pretrained(str(folder))
