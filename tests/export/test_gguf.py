"""A person in llama.cpp: it writes what prlhf writes for that person, token by token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="GGUF files are written with the package gguf")
pytest.importorskip("xllamacpp", reason="llama.cpp is in the package xllamacpp")
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

import gguf
from architectures import CONFIGS, PAD, ROTARY, VOCABULARY, base_of, policy_of
from llama_cpp import Token, greedy, write_base

from prlhf.errors import PrlhfError
from prlhf.export.gguf import write_gguf
from prlhf.export.person import person_of
from prlhf.model.checkpoint import Policy
from prlhf.model.readings import Reading, padded

CONFIGS["qwen2"] = ("Qwen2Config", ROTARY | {"num_key_value_heads": 1})
PROMPTS = [[5, 6, 7, 8, 9], [11, 30, 12]]
KINDS = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"]


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
    base = write_base(base_of(kind).lm, tmp_path / "base.gguf")
    texts = []
    for user_index in (1, 0):
        write_gguf(person_of(policy, tmp_path, f"u{user_index}", user_index), tmp_path)
        found = greedy(base, tmp_path / "adapter.gguf", PROMPTS, 6)
        for prompt, theirs in zip(PROMPTS, found, strict=True):
            expected = ours(policy, user_index, prompt, len(theirs))
            assert [token for token, _ in theirs] == [token for token, _ in expected]
            close = 1e-2 if kind == "gemma" else 1e-4  # llama.cpp looks GELU up in a table of fp16
            assert [value for _, value in theirs] == pytest.approx([value for _, value in expected], abs=close)
        texts.append([token for one in found for token, _ in one])
    assert len(texts[0]) > 6
    assert texts[0] != texts[1]


def test_a_kind_of_base_that_was_never_compared_is_refused(tmp_path: Path) -> None:
    policy = policy_of("neox", user_in="adapter")
    with pytest.raises(PrlhfError, match="no GGUF adapter for a base of the kind gpt_neox; known: llama"):
        write_gguf(person_of(policy, tmp_path, "u1", 1), tmp_path)
    assert not (tmp_path / "adapter.gguf").exists()


def test_an_adapter_of_the_head_is_refused(tmp_path: Path) -> None:
    policy = policy_of("llama", user_in="adapter", lora_targets="q_proj,lm_head")
    with pytest.raises(PrlhfError, match=r"llama\.cpp takes no adapter of the layer lm_head"):
        write_gguf(person_of(policy, tmp_path, "u1", 1), tmp_path)


def test_what_the_file_says(tmp_path: Path) -> None:
    policy = policy_of("llama", user_in="adapter", lora_r=4, lora_alpha=12)
    write_gguf(person_of(policy, tmp_path, "u1", 1), tmp_path)
    read = gguf.GGUFReader(tmp_path / "adapter.gguf")
    said = {name: field.contents() for name, field in read.fields.items()}
    assert (said["general.type"], said["adapter.type"], said["adapter.lora.alpha"]) == ("adapter", "lora", 12)
    assert len(read.tensors) == 2 * 7 * 2
