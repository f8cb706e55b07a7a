"""llama.cpp as the other side: a small model of transformers as a GGUF file, and what llama.cpp writes with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

# transformers' model_type -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma": "gemma",
}

WRITE = """
import json, sys, xllamacpp
model, adapter, requests = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = model
if adapter:
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup, params.offline = 256, 1, 0, False, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
for request in requests:
    said = server.handle_completions(request)
    print("said", said if isinstance(said, str) else json.dumps(said), flush=True)
"""

Token = tuple[int, float]  # id, log-prob


def greedy(model: Path, adapter: Path | None, prompts: list[list[int]], tokens: int) -> list[list[Token]]:
    """What llama.cpp writes after each of `prompts`, with the most probable token at each step."""
    requests = [{"prompt": ids, "max_tokens": tokens, "temperature": 0, "logprobs": 1} for ids in prompts]
    given = json.dumps([str(model), adapter and str(adapter), requests])
    done = subprocess.run(
        [sys.executable, "-c", WRITE, given], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line.removeprefix("said ") for line in done.stdout.splitlines() if line.startswith("said ")]
    assert len(lines) == len(prompts), done.stderr[-3000:]
    contents = [json.loads(line)["choices"][0]["logprobs"]["content"] for line in lines]
    return [[(one["id"], one["logprob"]) for one in content] for content in contents]


def write_base(lm: Any, path: Path) -> Path:
    """`lm` in fp32, with made-up names of tokens."""
    config = lm.config
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _write_config(writer, config)
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    for key, value in lm.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        writer.add_tensor(name, _as_llama_cpp_has_it(key, value, config).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_config(writer: Any, config: Any) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    size = config.vocab_size
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _as_llama_cpp_has_it(key: str, value: torch.Tensor, config: Any) -> torch.Tensor:
    value = value.detach().float()
    if ARCHITECTURES[config.model_type] == "gemma" and "norm" in key:
        return value + 1  # llama.cpp multiplies by the weight, Gemma by 1 + the weight
    if ARCHITECTURES[config.model_type] == "llama" and ("q_proj" in key or "k_proj" in key):
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        width = len(value) // heads
        pairs = [(head * width + i, head * width + width // 2 + i) for head in range(heads) for i in range(width // 2)]
        return value[[row for pair in pairs for row in pair]]
    return value
