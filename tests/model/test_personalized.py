"""Padded batches against one row at a time, the reference against the base itself, on many architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS, PAD, TOKENS, base_of, perturb, policy_of
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.model.checkpoint import Policy, assemble
from prlhf.model.personalized import PersonalizedLM
from prlhf.model.readings import Rows, pad_rows

# prompts (two of them with a text about the user in front), responses and users of unequal lengths
BEFORE = [[5, 6, 7], [8], [30, 31, 32, 9, 10, 11], [40, 12]]
RESPONSES = [[20, 21, 1], [22, 1], [1], [23, 24, 25, 26, 1]]
USERS = [1, 0, 3, 2]


def rows_of(which: list[int], tokens: int = TOKENS) -> Rows:
    return pad_rows([BEFORE[i] for i in which], [RESPONSES[i] for i in which], [USERS[i] for i in which], tokens, PAD)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def policy(request: pytest.FixtureRequest) -> Policy:
    return policy_of(request.param)


def naive(lm: Any, before: list[int], response: list[int]) -> float:
    """Log-prob of a response from input ids, one token at a time, by the definition."""
    log_probs = lm(input_ids=torch.tensor([before + response])).logits[0].double().log_softmax(-1)
    first = len(before)
    return sum(log_probs[first + i - 1, token].item() for i, token in enumerate(response))


def test_a_padded_batch_is_its_rows_one_by_one(policy: Policy) -> None:
    with torch.no_grad():
        together = policy.model(rows_of([0, 1, 2, 3]))
        alone = torch.cat([policy.model(rows_of([i])) for i in range(4)])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert (together < -1).all()  # and they are log-probs of something


def test_padding_moves_no_gradient(policy: Policy) -> None:
    def gradients(batches: list[list[int]]) -> dict[str, Tensor]:
        policy.model.zero_grad()
        for which in batches:
            policy.model(rows_of(which)).sum().backward()
        return {n: p.grad.clone().to_dense() for n, p in policy.model.named_parameters() if p.grad is not None}

    together, alone = gradients([[0, 1, 2, 3]]), gradients([[0], [1], [2], [3]])
    assert {"users.generic", "users.offsets.weight"} < set(together)
    assert any("lora_A" in name for name in together)
    for name, gradient in together.items():
        assert gradient.isfinite().all()
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(gradient / scale, alone[name] / scale, rtol=0, atol=2e-5)


def test_the_reference_is_the_base_itself(policy: Policy) -> None:
    fresh = base_of(policy.base.name).lm
    expected = [naive(fresh, b, r) for b, r in zip(BEFORE, RESPONSES, strict=True)]
    found = policy.model.reference(rows_of([0, 1, 2, 3], tokens=0))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


def test_training_mode_has_no_dropout(policy: Policy) -> None:
    """With lora_dropout 0 the policy is deterministic: the base's own dropout is off, as in TRL."""
    rows = rows_of([0, 1, 2, 3])
    policy.model.eval()
    with torch.no_grad():
        calm = policy.model(rows)
        policy.model.train()
        busy = policy.model(rows)
    policy.model.eval()
    torch.testing.assert_close(busy, calm, rtol=0, atol=1e-5)


def test_user_vectors_stand_in_front_of_the_text() -> None:
    """One row by hand: concat(f_im(u), embeddings of text, prompt and response)."""
    policy = policy_of("llama")
    model = policy.model
    before, response, user = BEFORE[2], RESPONSES[3], torch.tensor([3])
    with torch.no_grad():
        words = model.lm.get_input_embeddings()(torch.tensor([before + response]))
        logits = model.lm(inputs_embeds=torch.cat([model.users(user), words], 1)).logits[0].log_softmax(-1)
        first = TOKENS + len(before)
        expected = sum(logits[first + i - 1, token] for i, token in enumerate(response))
        found = model(pad_rows([before], [response], [3], TOKENS, PAD))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_each_row_gets_its_own_user() -> None:
    """Rows of different offsets in front: which user's vectors go where is not mixed up by padding."""
    policy = policy_of("llama")
    rows = rows_of([2, 0, 1])
    embeds = policy.model.embed(rows)
    for i, user in enumerate([3, 1, 0]):
        assert torch.equal(embeds[i][rows.slots[i]], policy.model.users(torch.tensor([user]))[0])


def test_users_differ_and_a_gradient_reaches_only_their_own_row() -> None:
    policy = policy_of("llama")
    rows = pad_rows([BEFORE[0]] * 2, [RESPONSES[0]] * 2, [1, 3], TOKENS, PAD)
    out = policy.model(rows)
    assert abs(out[0] - out[1]).item() > 1e-3
    out[1].backward()
    grad = policy.model.users.get_parameter("offsets.weight").grad
    assert grad is not None
    assert (grad.to_dense() != 0).any(1).tolist() == [False, False, True]


def test_the_reference_ignores_adapter_and_users() -> None:
    policy = policy_of("llama")
    rows = rows_of([0, 1, 2, 3], tokens=0)
    before = policy.model.reference(rows)
    perturb(policy.model, by=1.0)
    after = policy.model.reference(rows)
    assert torch.equal(before, after)
    assert not after.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_reference_restores_the_mode(training: bool) -> None:
    policy = policy_of("llama", lora_dropout=0.5)
    policy.model.train(training)
    policy.model.reference(rows_of([0], tokens=0))
    assert {m.training for m in policy.model.modules()} == {training}


def test_a_uniform_policy_without_tokens_starts_as_the_base() -> None:
    config = TrainConfig(user_model="uniform", user_tokens=0, lora_dropout=0.0)
    model = assemble(base_of("llama"), config, ["a"], {}).model
    with torch.no_grad():
        assert torch.equal(model(rows_of([0, 1], tokens=0)), model.reference(rows_of([0, 1], tokens=0)))


def test_a_base_that_scores_every_position_agrees() -> None:
    """`logits_to_keep` saves work and changes nothing."""
    model = policy_of("llama").model
    plain = PersonalizedLM(model.lm, model.users)
    plain._keeps_logits = False
    with torch.no_grad():
        torch.testing.assert_close(plain(rows_of([0, 1, 2, 3])), model(rows_of([0, 1, 2, 3])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_base_alone_is_read_as_in_evaluation(policy: Policy, training: bool) -> None:
    policy.model.train(training)
    with policy.model.as_base():
        assert not any(module.training for module in policy.model.lm.modules())
    assert policy.model.lm.training is training
    policy.model.eval()
