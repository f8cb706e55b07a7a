"""Trees give what padded rows give, values and gradients, on every architecture that takes them; the others are
found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS, PAD, TOKENS, WITHOUT_TREES, base_of, perturb, policy_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.kernels.tree_attention import NAME, SegmentAttention
from prlhf.model.checkpoint import Policy, assemble
from prlhf.model.engine import Engine, tree_fault
from prlhf.model.personalized import Personalized, RewardModel
from prlhf.model.prefix_tree import pack
from prlhf.model.readings import Reading, padded


def family(user: int, before: tuple[int, ...], responses: int) -> list[Reading]:
    """The first two of the responses begin alike."""
    stem = (30, 31, 32)
    return [Reading(user, before, stem * (i < 2) + tuple(range(40, 40 + i)) + (50 + i, 1)) for i in range(responses)]


def readings_with(responses: int) -> list[Reading]:
    """Three users, two of them with the same prompt, one with a text about them in front; longer than the windows."""
    prompt, text = (5, 6, 7, 8, 9, 10, 11), (20, 21, 22)
    found = family(1, prompt, responses) + family(0, prompt, responses)
    return found + family(2, text + prompt, 2) + family(1, (9,), 2)


def run(model: Personalized, layout: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    values = model(layout)
    weights = torch.linspace(-1, 1, len(values))
    (values * weights).sum().backward()
    return values.detach(), {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Personalized, readings: list[Reading], **options: Any) -> None:
    expected, gradients = run(model, padded(readings, TOKENS, PAD))
    found, others = run(model, pack(readings, TOKENS, **options))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert set(gradients) == set(others)
    scale = max(1.0, *(gradient.abs().max().item() for gradient in gradients.values()))
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name] / scale, gradient / scale, rtol=0, atol=2e-5, msg=name)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def policy(request: pytest.FixtureRequest) -> Policy:
    return policy_of(request.param)


@pytest.mark.parametrize("responses", [1, 2, 5])
def test_trees_are_padded_rows(policy: Policy, responses: int) -> None:
    assert_same(policy.model, readings_with(responses), min_shared=1)


def test_every_architecture_passes_the_probe(policy: Policy) -> None:
    assert tree_fault(policy.model, PAD) == ""
    assert policy.model.attention == ("dense" if policy.base.name == "gptj" else "segments")


def test_the_reference_reads_trees_too(policy: Policy) -> None:
    readings = [r for r in readings_with(3) if r.user_index == 0]
    values = [Engine(policy.model, PAD, trees=trees).reference(readings) for trees in (True, False)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral with window", "gemma3"])
def test_flex_attention_is_the_same(name: str) -> None:
    """As it stands on a CPU, whose backward pass is not implemented: values only."""
    model = policy_of(name).model
    readings = readings_with(3)
    with torch.no_grad():
        expected = model(padded(readings, TOKENS, PAD))
        model.attention = "flex"
        found = model(pack(readings, TOKENS, min_shared=1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_columns_that_fill_up_change_nothing() -> None:
    assert_same(policy_of("llama").model, readings_with(2), multiple=64)


def test_without_flex_attention_segments_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be compiled, say."""
    model = policy_of("llama").model
    model.attention = "flex"

    def refuse() -> None:
        raise RuntimeError("no triton")

    monkeypatch.setattr("prlhf.kernels.tree_attention._flex", refuse)
    notes: list[str] = []
    engine = Engine(model, PAD, progress=Notes(notes))
    assert (engine.trees, model.attention) == (True, "segments")
    assert notes == ["FlexAttention is not used: RuntimeError: no triton"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_dense_masks_are_the_same(name: str) -> None:
    model = policy_of(name).model
    model.attention = "dense"
    assert_same(model, readings_with(3), min_shared=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gptj"])
def test_with_activation_checkpointing(name: str) -> None:
    policy = policy_of(name)
    readings = readings_with(2)
    _, expected = run(policy.model, pack(readings, TOKENS))
    policy.base.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.model.train()
    _, found = run(policy.model, pack(readings, TOKENS))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


def test_all_weights_trained() -> None:
    """The vocabulary's own gradient: the head is not frozen then."""
    policy = assemble(base_of("llama"), TrainConfig(full_finetune=True, user_tokens=TOKENS), ["a", "b"], {})
    assert_same(policy.model, readings_with(3), min_shared=1)
    tied = policy_of("gpt2", full_finetune=True)
    assert_same(tied.model, readings_with(3), min_shared=1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gptj"])
def test_rewards(name: str) -> None:
    config = TrainConfig(objective="rm", user_tokens=TOKENS, user_init="random", lora_dropout=0.0)
    model = assemble(base_of(name), config, ["a", "b"], {}, RewardModel).model
    perturb(model, "lora_B")
    assert_same(model, readings_with(3), min_shared=1)


@pytest.mark.parametrize("name", sorted(WITHOUT_TREES))
def test_models_that_cannot_read_trees_are_found(name: str) -> None:
    """One line, and the padded path gives the values."""
    base = base_of(name)
    policy = assemble(base, TrainConfig(full_finetune=True, user_tokens=TOKENS), ["a", "b"], {})
    notes: list[str] = []
    engine = Engine(policy.model, PAD, progress=Notes(notes))
    assert not engine.trees
    assert len(notes) == 1
    assert notes[0].startswith("prefix trees are off for this model, which is slower: ")
    assert "\n" not in notes[0]
    readings = readings_with(2)
    with torch.no_grad():
        torch.testing.assert_close(engine.values(readings), policy.model(padded(readings, TOKENS, PAD)))


class Notes:
    def __init__(self, notes: list[str]) -> None:
        self.note = notes.append


def test_the_probe_restores_the_mode() -> None:
    model = policy_of("llama").model.train()
    assert tree_fault(model, PAD) == ""
    assert model.training


def test_a_wrong_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches that see each other change the numbers: the probe sees it."""
    policy = policy_of("llama")

    def causal_only(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    monkeypatch.setattr("prlhf.kernels.tree_attention.over_segments", causal_only)
    assert "differ by" in tree_fault(policy.model, PAD)


ids = st.lists(st.integers(2, 8), min_size=1, max_size=7).map(tuple)
LLAMA = policy_of("llama")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.builds(Reading, st.integers(0, 3), ids, ids), min_size=1, max_size=7), st.integers(1, 60))
def test_any_readings_in_parts_of_any_size(readings: list[Reading], budget: int) -> None:
    with torch.no_grad():
        found = Engine(LLAMA.model, PAD, budget).values(readings)
        expected = torch.cat([LLAMA.model(padded([reading], TOKENS, PAD)) for reading in readings])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_other_rows_go_through_sdpa() -> None:
    """Putting our attention in place changes nothing for padded rows, and a saved model does not know of it."""
    base = base_of("llama")
    row = torch.tensor([[5, 6, 7, 8]])
    before = base.lm(row, attention_mask=torch.tensor([[0, 1, 1, 1]])).logits
    policy = assemble(base, TrainConfig(user_model="uniform", user_tokens=0, full_finetune=True), [], {})
    assert base.lm.config._attn_implementation == NAME
    after = policy.model.lm(row, attention_mask=torch.tensor([[0, 1, 1, 1]])).logits
    torch.testing.assert_close(after, before)
    assert NAME not in base.lm.config.to_json_string()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "neox", "mistral with window", "gemma3"])
@pytest.mark.parametrize("queries", [3, 256])
def test_long_readings_on_a_cpu(monkeypatch: pytest.MonkeyPatch, name: str, queries: int) -> None:
    """Attention of our own, a few queries at a time, as it is for readings of hundreds of tokens."""
    monkeypatch.setattr("prlhf.kernels.tree_attention.faster", lambda: True)  # in fp32, it is used on some chips only
    monkeypatch.setattr("prlhf.kernels.tree_attention.LONG", 1)
    monkeypatch.setattr("prlhf.kernels.tree_attention.QUERIES", queries)
    used: list[int] = []
    own = SegmentAttention.backward
    monkeypatch.setattr(SegmentAttention, "backward", staticmethod(lambda ctx, grad: used.append(1) or own(ctx, grad)))
    assert_same(policy_of(name).model, readings_with(3), min_shared=1)
    assert used
