"""A response in pieces is the response, whatever stands at its seams: characters of several tokens, stop texts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from prlhf.config import GenerateConfig
from prlhf.generate.baselines import baseline_of
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow
from prlhf.generate.decoding import End, write, written
from prlhf.generate.readers import Reader
from prlhf.generate.requests import WriteRequest, plan_requests
from prlhf.generate.sampling import Sampling, choose, choose_each
from prlhf.generate.stream import stream
from prlhf.generate.text_stream import TextStream, overlap
from prlhf.model.checkpoint import Policy, load_policy

TEXTS = [
    "plain words. and more",
    "Zürich – 東京 🙂🙂 naïve",
    "stop here\nSTOP and no more",
    "ST STO STOP",
    "",
    "🙂" * 3,
    "STO",
]


@pytest.fixture(scope="module")
def policy(trained: Path) -> Policy:
    return load_policy(trained, "cpu")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ends", [True, False])
def test_pieces_joined_are_the_whole(policy: Policy, text: str, ends: bool) -> None:
    tokenizer = policy.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * ends
    end = End(frozenset([tokenizer.eos_token_id]), "STOP")
    streamed, pieces = TextStream(tokenizer, end), []
    for token in ids:
        pieces.append(streamed.push(token))
        if streamed.finished:
            break
    pieces.append("" if streamed.finished else streamed.rest())
    expected = written(WriteRequest("p", "", [], "ann", 1), ids, tokenizer, end)
    assert "".join(pieces) == expected.text
    assert streamed.finished == expected.finished
    assert streamed.tokens == expected.tokens
    assert "\ufffd" not in "".join(pieces)


def test_a_text_is_shown_as_soon_as_it_can_be(policy: Policy) -> None:
    end = End(frozenset(), "")
    streamed = TextStream(policy.tokenizer, end, ["xyz"])
    ids = policy.tokenizer("ab xy", add_special_tokens=False).input_ids
    assert "".join(map(streamed.push, ids)) == "ab "
    assert streamed.rest() == "xy"
    assert [overlap("abcab", "abd"), overlap("ab", "ab"), overlap("", "a"), overlap("aab", "aabc")] == [2, 0, 0, 3]


@pytest.mark.parametrize(("text", "left_out", "shown"), [("caf🙂", 1, "caf"), ("a<|im", 0, "a"), ("a<b", 0, "a<b")])
def test_text_that_more_tokens_may_change_is_held(policy: Policy, text: str, left_out: int, shown: str) -> None:
    ids = policy.tokenizer(text, add_special_tokens=False).input_ids
    streamed = TextStream(policy.tokenizer, End(frozenset(), "<|im_end|>"))
    assert "".join(map(streamed.push, ids[: len(ids) - left_out])) == shown


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_response_is_the_one_that_generate_writes(policy: Policy, temperature: float) -> None:
    config = GenerateConfig(max_new_tokens=12, temperature=temperature, seed=5)
    for user in ("ann", "bob"):
        reader = Reader(user, policy.index_of()[user], policy.user_texts.get(user, ""))
        (request,) = plan_requests(policy, [("POST: my boss lost cars.\nTL;DR:", reader)], baseline_of(config), config)
        ((whole,),) = write(policy, [request], config)
        pieces = list(stream(policy, request, config))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 2


# ---- rows with settings of their own ----


def loop_of(policy: Policy, size: int = 4, **options: Any) -> DecodeLoop:
    return DecodeLoop(policy.model, size, 8, lambda _: False, **options)


def test_rows_are_sampled_in_their_own_way(policy: Policy) -> None:
    logits = torch.randn(6, 400)
    ways = [Sampling(0.0), Sampling(1.0), Sampling(0.7, 0.5), Sampling(0.0), Sampling(1.0), Sampling(0.3)]
    mixed = choose_each(logits, range(6), [3] * 6, ways)
    alone = [choose(logits[i : i + 1], [i], [3], w.temperature, w.top_p).item() for i, w in enumerate(ways)]
    assert mixed.tolist() == alone


def test_rows_have_rooms_and_scores_of_their_own_and_may_leave_early(policy: Policy) -> None:
    rows = [DecodeRow([5, 6, 7 + i], 1, seed=i, room=room) for i, room in enumerate((2, 8, 20, 8))]
    rows[1].top, rows[2].sampling = 3, Sampling(1.0)
    loop = loop_of(policy)
    loop.join(rows)
    ended = [row for _ in range(3) for row in loop.step()]
    assert ended == [rows[0]]
    loop.drop([rows[3]])
    while loop.active:
        ended += loop.step()
    assert [len(row.written) for row in rows] == [2, 8, 8, 3]
    assert {id(row) for row in ended} == {id(row) for row in rows[:3]}
    assert [len(row.scores) for row in rows] == [0, 8, 0, 0]
    for token, one in zip(rows[1].written, rows[1].scores, strict=True):
        assert one.top[0] == (token, one.log_prob)  # greedy
        assert all(a >= b for (_, a), (_, b) in pairwise(one.top))
        assert len(one.top) == 3
    again = DecodeRow(rows[2].ids, 1, seed=2)
    list(loop_of(policy, 1, temperature=1.0).run([again]))
    assert again.written == rows[2].written
