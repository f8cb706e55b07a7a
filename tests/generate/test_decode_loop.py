"""Rows that join and leave write, token for token, what whole forwards without a cache say, on many architectures."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import nn

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.generate import decode_loop, decoding
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow, alike, serves
from prlhf.generate.decoding import write
from prlhf.generate.requests import WriteRequest
from prlhf.model.base import Base
from prlhf.model.checkpoint import Policy, assemble
from prlhf.model.personalized import unwrapped

WIDTH, TOKENS, WINDOW, ROOM = 16, 2, 6, 12
COMMON: dict[str, Any] = {
    "vocab_size": 60, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
ROTARY: dict[str, Any] = COMMON | {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
HEADS: dict[str, Any] = ROTARY | {"head_dim": 8}
GPT: dict[str, Any] = COMMON | {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64}
GEMMA: dict[str, Any] = HEADS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 8}
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", ROTARY),
    "gpt2": ("GPT2Config", GPT),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "neox": ("GPTNeoXConfig", ROTARY),
    "opt": (
        "OPTConfig",
        COMMON | {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "ffn_dim": 32, "max_position_embeddings": 64, "init_std": 0.3},
    ),
    "qwen3": ("Qwen3Config", HEADS),
    "qwen3-window": (
        "Qwen3Config", HEADS | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    ),
    "mistral": ("MistralConfig", ROTARY | {"sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
NOT_SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", COMMON | {"hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    "mamba": ("MambaConfig", COMMON | {"hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4}),
    "gpt-neo": (
        "GPTNeoConfig",
        COMMON | {"hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "window_size": WINDOW,
                  "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    ),
}  # fmt: skip
# ids, user; lengths around the window, of one token, some that begin alike
LENGTHS, USERS = (3, 1, 12, 8, 5, 7, 13, 2, 8, 8), (1, 0, 3, 2, 1, 2, 0, 3, 2, 1)
PROMPTS = [[(7 * n + j) % 58 + 2 for j in range(n)] for n in LENGTHS]
ROOMS = [12, 3, 7, 12, 5, 12, 12, 2, 9, 1]


class Tokens:
    """In place of a tokenizer: every token is a letter, the first the end of text."""

    eos_token_id, pad_token_id = 1, 0
    added_tokens_decoder: ClassVar[dict[int, str]] = {}

    def decode(self, ids: list[int], **options: Any) -> str:
        return "".join(chr(40 + i) for i in ids if i > 1)


def policy_of(name: str, **options: Any) -> Policy:
    """Individual users with random offsets on a random base without an adapter."""
    kind, values = (SERVED | NOT_SERVED)[name]
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**values)).eval()
    config = TrainConfig.saved({"user_tokens": TOKENS, "user_init": "random", "full_finetune": True} | options)
    policy = assemble(Base(name, lm, Tokens(), ""), config, ["a", "b", "c"], {})
    policy.model.requires_grad_(False).eval()
    return policy


def whole_forwards(policy: Policy, ids: list[int], user: int | None, count: int) -> list[int]:
    """Greedy, without cache, batch or mask."""
    words, found = policy.model.lm.get_input_embeddings(), list(ids)
    front = [] if user is None else [policy.model.users(torch.tensor([user]))]
    for _ in range(count):
        embeds = torch.cat([*front, words(torch.tensor([found]))], 1)
        found.append(int(policy.model.lm(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
    return found[len(ids) :]


def rows(personal: bool = True) -> list[DecodeRow]:
    return [
        DecodeRow(tuple(p), u if personal else None, 0, tag=i)
        for i, (p, u) in enumerate(zip(PROMPTS, USERS, strict=True))
    ]


def at_room(row: DecodeRow) -> bool:
    return len(row.written) == ROOMS[row.tag]


def run(policy: Policy, some: list[DecodeRow], size: int = 3) -> dict[int, list[int]]:
    loop = DecodeLoop(policy.model, size, ROOM, at_room)
    return {row.tag: row.written for ended in loop.run(some) for row in ended}


@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("name", sorted(SERVED))
def test_greedy_is_whole_forwards(name: str, attention: str) -> None:
    """Three slots for ten rows of unequal ends, so rows leave from all places and others join beside them."""
    policy = policy_of(name)
    if attention == "eager":
        policy.model.lm.set_attn_implementation("eager")
    assert serves(policy.model)
    for personal in (True, False):
        found = run(policy, rows(personal))
        for row in rows(personal):
            assert found[row.tag] == whole_forwards(policy, PROMPTS[row.tag], row.user_index, ROOMS[row.tag]), row


@pytest.mark.parametrize("name", sorted(SERVED))
def test_greedy_is_transformers_generate(name: str) -> None:
    """In one padded batch."""
    policy = policy_of(name)
    lm, longest = policy.model.lm, max(LENGTHS)
    lm.generation_config = transformers.GenerationConfig()  # else its end of text is mixed in
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    plain = transformers.GenerationConfig(max_new_tokens=ROOM, do_sample=False, pad_token_id=0)
    expected = lm.generate(input_ids=ids, attention_mask=mask, generation_config=plain)[:, longest:].tolist()
    found = run(policy, rows(personal=False))
    assert [found[i] for i in range(len(PROMPTS))] == [e[:n] for e, n in zip(expected, ROOMS, strict=True)]


@pytest.mark.parametrize("name", sorted(NOT_SERVED))
def test_models_that_the_loop_cannot_serve_are_decoded_by_generate(name: str) -> None:
    policy = policy_of(name, user_tokens=0, user_model="uniform")
    assert not serves(policy.model)
    requests = [WriteRequest(str(i), "", p, "a", 1) for i, p in enumerate(PROMPTS[:4])]
    settings = GenerateConfig(max_new_tokens=5, temperature=0, batch_size=1)
    found = {row.request.prompt_id: row.text for ended in write(policy, requests, settings) for row in ended}
    for request in requests:
        written = whole_forwards(policy, request.ids, None, 5)
        written = written[: written.index(1)] if 1 in written else written
        assert found[request.prompt_id] == Tokens().decode(written)


@pytest.mark.parametrize("name", sorted(SERVED))
def test_half_precision_is_served(name: str) -> None:
    policy = policy_of(name)
    policy.model.lm.to(torch.bfloat16)
    assert serves(policy.model)
    assert {tag: len(ids) for tag, ids in run(policy, rows()).items()} == dict(enumerate(ROOMS))


def test_the_probe_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says nothing of its windows: their masks would be those of whole attention."""
    policy = policy_of("mistral")
    monkeypatch.setattr("prlhf.generate.kv_cache.window_of", lambda config: None)
    monkeypatch.setattr(decode_loop, "window_of", lambda config: WINDOW)
    assert not serves(policy.model)


def test_the_loop_and_generate_sample_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever settings of its own the model brings."""
    policy = policy_of("llama")
    own = policy.model.lm.generation_config
    own.repetition_penalty = 9.0
    requests = [WriteRequest(str(i), "", p, "a", u) for i, (p, u) in enumerate(zip(PROMPTS, USERS, strict=True))]
    settings = GenerateConfig(max_new_tokens=9, temperature=0.8, top_p=0.9, batch_size=4)

    def texts() -> dict[str, Any]:
        return {one.request.prompt_id: one for ended in write(policy, requests, settings) for one in ended}

    ours = texts()
    monkeypatch.setattr(decoding, "serves", lambda model: False)
    assert texts() == ours
    assert policy.model.lm.generation_config is own


# ---- what is computed ----


class Spy:
    """Counts the rows and columns of every forward of the trunk."""

    def __init__(self, policy: Policy) -> None:
        self.shapes: list[tuple[int, int]] = []
        trunk: nn.Module = unwrapped(policy.model.lm).base_model
        trunk.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, options: dict[str, Any]) -> None:
        self.shapes.append(tuple(options["inputs_embeds"].shape[:2]))

    @property
    def read(self) -> list[tuple[int, int]]:
        return [shape for shape in self.shapes if shape[1] > 1]

    @property
    def stepped(self) -> list[int]:
        return [rows for rows, columns in self.shapes if columns == 1]


def test_rows_that_end_leave_and_others_join() -> None:
    policy = policy_of("llama")
    spy = Spy(policy)
    run(policy, rows(), size=3)
    assert sum(spy.stepped) == sum(ROOMS)  # no row is computed after its end
    assert max(spy.stepped) == 3
    assert len(spy.stepped) < sum(ROOMS) / 2  # and slots do not stand empty


def test_rows_that_begin_alike_are_read_once() -> None:
    """Five candidates in three slots: the fourth and fifth join while another still stands."""
    policy = policy_of("llama")
    spy = Spy(policy)
    same = [DecodeRow(tuple(PROMPTS[2]), 1, seed=i, tag=i) for i in range(5)]
    loop = DecodeLoop(policy.model, 3, ROOM, at_room, temperature=1.0)
    found = {row.tag: row.written for ended in loop.run(same) for row in ended}
    assert spy.read == [(1, TOKENS + LENGTHS[2] - 1)]
    assert len({tuple(ids[:2]) for ids in found.values()}) > 1
    for row in same:
        alone = DecodeLoop(policy.model, 1, ROOM, at_room, temperature=1.0)
        again = DecodeRow(row.ids, 1, seed=row.seed, tag=row.tag)
        assert [r.written for ended in alone.run([again]) for r in ended] == [found[row.tag]]


def test_equal_greedy_rows_are_written_once() -> None:
    policy = policy_of("llama", user_model="uniform")
    spy = Spy(policy)
    list(
        write(policy, [WriteRequest("p", "", [5, 6], "a", 1)], GenerateConfig(max_new_tokens=4, temperature=0))
    )  # and probes
    spy.shapes.clear()
    requests = [WriteRequest("p", "", [5, 6], user, i) for i, user in enumerate("generic a b c".split())]
    found = [one for ended in write(policy, requests, GenerateConfig(max_new_tokens=4, temperature=0)) for one in ended]
    assert set(spy.stepped) == {1}
    assert [one.request for one in found] == requests
    assert len({one.text for one in found}) == 1
    spy.shapes.clear()
    sampled = [one for ended in write(policy, requests, GenerateConfig(max_new_tokens=4)) for one in ended]
    assert spy.read == [(1, TOKENS + 1)]
    assert len({one.text for one in sampled}) > 1


def test_a_stop_ends_its_row_at_once() -> None:
    policy = policy_of("llama")
    settings = GenerateConfig(max_new_tokens=ROOM, temperature=0)
    request = WriteRequest("p", "", PROMPTS[3], "b", 2)
    (free,) = [one for ended in write(policy, [request], settings) for one in ended]
    stop = free.text[2:4]
    spy = Spy(policy)
    (stopped,) = [
        one for ended in write(policy, [WriteRequest("p", "", PROMPTS[3], "b", 2, stop)], settings) for one in ended
    ]
    assert stopped.text == free.text[: free.text.index(stop)]
    assert (stopped.finished, len(spy.stepped)) == (True, stopped.tokens)
    assert stopped.tokens == free.text.index(stop) + 2 < free.tokens


def test_similar_lengths_are_read_together() -> None:
    assert [list(group) for group in alike([100, 95, 90, 89, 81, 9, 8], int)] == [[100, 95, 90], [89, 81], [9], [8]]
    assert list(alike([], int)) == []
