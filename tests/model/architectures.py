"""Random models of many architectures, small enough to prove things on."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from prlhf.config import TrainConfig
from prlhf.model.base import Base
from prlhf.model.checkpoint import Policy, assemble

WIDTH, VOCABULARY, PAD, TOKENS = 16, 60, 0, 2
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
ROTARY: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", ROTARY | {"num_key_value_heads": 1}),
    "gpt2": (
        "GPT2Config",
        COMMON | {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.5, "resid_pdrop": 0.5},
    ),
    "neox": ("GPTNeoXConfig", ROTARY | {"attention_dropout": 0.5, "hidden_dropout": 0.5}),
    "opt": (
        "OPTConfig",
        COMMON | {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "ffn_dim": 32, "max_position_embeddings": 64, "dropout": 0.5, "attention_dropout": 0.5,
                  "init_std": 0.3},
    ),
    "qwen3": ("Qwen3Config", ROTARY | {"head_dim": 8, "num_key_value_heads": 2}),
    "mistral": ("MistralConfig", ROTARY | {"num_key_value_heads": 1, "sliding_window": None}),
    "mistral with window": ("MistralConfig", ROTARY | {"num_key_value_heads": 1, "sliding_window": 5}),
    "gptj": ("GPTJConfig", COMMON | {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4}),
    "phi3": ("Phi3Config", ROTARY | {"num_key_value_heads": 1}),
    # with larger weights its gradients are off by 7e-5 between padded rows and one by one already
    "phi3 with window": (
        "Phi3Config", ROTARY | {"num_key_value_heads": 1, "sliding_window": 5, "initializer_range": 0.2},
    ),
    "gemma": ("GemmaConfig", ROTARY | {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        ROTARY | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5, "num_hidden_layers": 6},
    ),
}  # fmt: skip
# layers with a state, attention or heads with terms of their own: these are to be detected
WITHOUT_TREES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2Config", ROTARY | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 5}),
    "gpt-neo": (
        "GPTNeoConfig",
        COMMON | {"hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64,
                  "attention_types": [[["global", "local"], 1]], "window_size": 5},
    ),
    "cohere": ("CohereConfig", ROTARY | {"num_key_value_heads": 1}),
    "bloom": ("BloomConfig", COMMON | {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "falcon": (
        "FalconConfig",
        COMMON | {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        ROTARY | {"head_dim": 8, "num_key_value_heads": 1, "num_hidden_layers": 4, "linear_num_value_heads": 2,
                  "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
                  "num_experts_per_tok": 1, "decoder_sparse_step": 1, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 16},
    ),
}  # fmt: skip


def base_of(name: str, seed: int = 0) -> Base:
    kind, options = (CONFIGS | WITHOUT_TREES)[name]
    torch.manual_seed(seed)
    lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**options))
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    return Base(name, lm.eval(), None, "")


def policy_of(name: str, users: int = 3, **options: Any) -> Policy:
    """Individual users with random offsets, and a LoRA adapter that has left zero."""
    values = {"user_tokens": TOKENS, "user_init": "random", "lora_dropout": 0.0, "lora_r": 2} | options
    policy = assemble(base_of(name), TrainConfig.saved(values), [f"u{i}" for i in range(users)], {})
    perturb(policy.model, "lora_B")
    return policy


def perturb(model: nn.Module, part: str = "", by: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and part in name:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
