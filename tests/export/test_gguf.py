"""A person in llama.cpp: it writes what prlhf writes for that person, token by token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp is in the package xllamacpp")
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

import gguf  # noqa: E402
from architectures import CONFIGS, PAD, ROTARY, VOCABULARY, WITHOUT_TREES, policy_of  # noqa: E402
from llama_cpp import Token, greedy, write_gguf  # noqa: E402

from prlhf.errors import PrlhfError  # noqa: E402
from prlhf.export import gguf as gguf_format  # noqa: E402
from prlhf.export.person import person_of  # noqa: E402
from prlhf.model.checkpoint import Policy  # noqa: E402
from prlhf.model.readings import Reading, padded  # noqa: E402

CONFIGS["qwen2"] = ("Qwen2Config", ROTARY | {"num_key_value_heads": 1})
PROMPTS = [[5, 6, 7, 8, 9], [11, 30, 12]]
KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]


def ours(policy: Policy, user_index: int, prompt: list[int], tokens: int) -> list[Token]:
    """What prlhf's model writes: the most probable of all tokens at each step."""
    written: list[Token] = []
    for _ in range(tokens):
        before = tuple(prompt + [token for token, _ in written])
        readings = [Reading(user_index, before, (token,)) for token in range(VOCABULARY)]
        with torch.no_grad():
            values = policy.model(padded(readings, 0, PAD))
        written.append((int(values.argmax()), float(values.max())))
    return written


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_writes_what_prlhf_writes(kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind, user_in="adapter", gates="block", lora_r=4)
    base = write_gguf(policy.model.lm.get_base_model(), tmp_path / "base.gguf")
    for user_index in (1, 0):
        gguf_format.write(person_of(policy, tmp_path, f"u{user_index}", user_index), tmp_path)
        found = greedy(base, tmp_path / "adapter.gguf", PROMPTS, 6)
        for prompt, theirs in zip(PROMPTS, found, strict=True):
            expected = ours(policy, user_index, prompt, 6)
            print(theirs, expected)
