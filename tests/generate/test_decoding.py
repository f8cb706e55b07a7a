"""A response does not depend on the batch it was written in, and greedy decoding is arg-max after arg-max."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prlhf.config import GenerateConfig
from prlhf.generate.decode_loop import DecodeRow
from prlhf.generate.decoding import End, Written, batches, stopped, turn_end, write, written
from prlhf.generate.requests import WriteRequest, row_seed
from prlhf.model.checkpoint import Policy, load_policy

PROMPTS = ["POST: my boss lost rings.\nTL;DR:", "my", "POST: my uncle hid doors. thanks for reading.\nTL;DR:", "so"]


@pytest.fixture(scope="module")
def policy(trained: Path) -> Policy:
    return load_policy(trained, "cpu", "fp32")


@pytest.fixture(scope="module")
def requests(policy: Policy) -> list[WriteRequest]:
    """Users 0 to 3, with and without a text, on prompts of unequal lengths."""
    found = []
    for i in range(8):
        prompt, user = PROMPTS[i % 4], (i + i // 4) % 4
        ids = policy.encoder().text("she likes long tables" if user == 1 else "") + policy.tokenizer(prompt).input_ids
        found.append(WriteRequest(f"p{i % 4}", prompt, ids, ["generic", "ann", "bob", "cat"][user], user))
    return found


def config(**options: Any) -> GenerateConfig:
    return GenerateConfig.model_validate({"max_new_tokens": 12, "device": "cpu"} | options)


def texts(
    policy: Policy, requests: list[WriteRequest], size: int = 8, base: bool = False, **options: Any
) -> dict[tuple[str, str], Written]:
    ended = write(policy, requests, config(batch_size=size, **options), base)
    return {(row.request.prompt_id, row.request.user_id): row for rows in ended for row in rows}


def one_token_at_a_time(policy: Policy, request: WriteRequest, steps: int) -> list[int]:
    """Greedy, without cache, batch, mask or generate: the user's vectors in front of the whole text every time."""
    lm, ids = policy.model.lm, list(request.ids)
    with torch.no_grad():
        for _ in range(steps):
            words = lm.get_input_embeddings()(torch.tensor([ids]))
            embeds = torch.cat([policy.model.users(torch.tensor([request.user_index])), words], 1)
            ids.append(int(lm(inputs_embeds=embeds).logits[0, -1].argmax()))
            if ids[-1] == policy.tokenizer.eos_token_id:
                break
    return ids[len(request.ids) :]


def test_greedy_in_a_batch_is_arg_max_by_hand(policy: Policy, requests: list[WriteRequest]) -> None:
    found = texts(policy, requests, temperature=0)
    assert len({row.text for row in found.values()}) > 4  # users and prompts matter
    for request in requests:
        row, expected = found[request.prompt_id, request.user_id], one_token_at_a_time(policy, request, 12)
        assert (row.text, row.finished) == (
            written(request, expected, policy.tokenizer, turn_end(policy, config())).text,
            row.finished,
        )
        assert row.tokens == len(expected) - row.finished


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"temperature": 0.7, "top_p": 0.8}])
def test_a_response_does_not_depend_on_its_batch(
    policy: Policy, requests: list[WriteRequest], options: dict[str, Any]
) -> None:
    together = texts(policy, requests, **options)
    assert texts(policy, requests, size=1, **options) == together
    assert texts(policy, requests[::-1], size=3, **options) == together


def test_users_of_one_prompt_get_different_responses(policy: Policy, requests: list[WriteRequest]) -> None:
    found = texts(policy, requests, temperature=0)
    for number in range(4):
        mine = [row.text for (prompt, _), row in found.items() if prompt == f"p{number}"]
        assert len(mine) == 2
        assert mine[0] != mine[1]


def test_seeds_differ_and_repeat(policy: Policy, requests: list[WriteRequest]) -> None:
    first, again, other = (texts(policy, requests, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert all(first[key].text != other[key].text for key in first)


def test_random_numbers_belong_to_prompt_and_user() -> None:
    def seed(prompt: str, user: str, number: int = 0) -> int:
        return row_seed(number, WriteRequest(prompt, "", [], user, 0))

    seeds = [seed("p", "ann"), seed("p", "bob"), seed("q", "ann"), seed("p", "ann", 1), seed("pa", "nn")]
    assert len(set(seeds)) == 5
    assert seed("p", "ann") == seeds[0]
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_small_nucleus_is_greedy(policy: Policy, requests: list[WriteRequest]) -> None:
    assert texts(policy, requests, top_p=1e-6) == texts(policy, requests, temperature=0)


def test_the_base_writes_as_its_own_generate(policy: Policy, requests: list[WriteRequest], tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()
    found = texts(policy, requests, temperature=0, base=True)
    for request in requests:
        ids = torch.tensor([request.ids])
        expected = lm.generate(input_ids=ids, do_sample=False, max_new_tokens=12)[0, len(request.ids) :].tolist()
        assert found[request.prompt_id, request.user_id] == written(
            request, expected, policy.tokenizer, turn_end(policy, config())
        )
    assert found != texts(policy, requests, temperature=0)


def test_what_is_written_ends_at_the_end_of_text(policy: Policy) -> None:
    request, tokenizer = WriteRequest("p", "", [], "ann", 1), policy.tokenizer
    end = End(frozenset({tokenizer.eos_token_id}))
    word, eos, pad = tokenizer("my").input_ids, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert written(request, [*word, eos, pad, pad], tokenizer, end) == Written(request, "my", len(word), True)
    assert written(request, word, tokenizer, end) == Written(request, "my", len(word), False)
    assert written(request, [eos, *word], tokenizer, end) == Written(request, "", 0, True)


def test_what_is_written_ends_at_the_stop_of_its_request(policy: Policy) -> None:
    """Tokens are counted up to the one that completes the stop, which does not belong to the response."""
    tokenizer = policy.tokenizer
    end = End(frozenset({tokenizer.eos_token_id}))
    request = WriteRequest("p", "", [], "ann", 1, stop="\n\n")
    word, stop, more = (tokenizer(text).input_ids for text in (" boats.", "\n\n", "POST: my"))
    assert written(request, [*word, *stop, *more], tokenizer, end) == Written(
        request, " boats.", len(word) + len(stop), True
    )
    assert written(request, [*word, *more], tokenizer, end) == Written(
        request, " boats.POST: my", len(word) + len(more), False
    )
    unstopped = written(replace(request, stop=""), [*word, *stop, *more], tokenizer, end)
    assert (unstopped.text, unstopped.finished) == (" boats.\n\nPOST: my", False)


def test_a_row_stops_where_its_stop_is_written(policy: Policy) -> None:
    """Across tokens, and also in the middle of one; without a stop it never does."""
    tokenizer = policy.tokenizer
    ids = tokenizer(" boats.\n\n").input_ids
    assert stopped("\n\n", ids, tokenizer)
    assert stopped("oat", ids, tokenizer)
    assert not stopped("\n\n", ids[:-1], tokenizer)
    assert not stopped("", ids, tokenizer)


def test_a_model_that_ends_says_so(policy: Policy, requests: list[WriteRequest]) -> None:
    """The token greedy decoding writes third, taken as the end of text: rows end there, others go on."""
    third = one_token_at_a_time(policy, requests[0], 3)
    before = policy.tokenizer.eos_token_id
    policy.tokenizer.eos_token_id = third[-1]
    try:
        found = texts(policy, requests, temperature=0)
        alone = texts(policy, requests, size=1, temperature=0)
    finally:
        policy.tokenizer.eos_token_id = before
    ended = found[requests[0].prompt_id, requests[0].user_id]
    assert (ended.finished, ended.tokens) == (True, third.index(third[-1]))
    assert found == alone


def test_batches_put_equal_lengths_together() -> None:
    rows = [DecodeRow([0] * n, None, 0) for n in (5, 1, 4, 2, 3)]
    assert [[len(row.ids) for row in batch] for batch in batches(rows, 2)] == [[1, 2], [3, 4], [5]]
