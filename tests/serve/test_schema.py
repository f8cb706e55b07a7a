"""What the server answers, checked against OpenAI's own models of it: strictly, and without fields of other names.

The one difference that is known: chunks of a stream of /v1/completions have no `finish_reason` before the last one, as
those of OpenAI's server; the model in the client does not allow it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from openai.types import Completion, CompletionUsage, ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from pydantic import BaseModel
from running_server import PROMPT, Running

from prlhf.generate.sampling import TokenScore
from prlhf.serve.protocol import NEUTRAL, ChatAsk, CompletionAsk
from prlhf.serve.shapes import ChatShape, Partial, TextShape

ASKED = [{"role": "user", "content": PROMPT}]
# of requests: how the answer is made, counted or kept at OpenAI, which changes nothing here
IDLE = {
    "metadata", "moderation", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "reasoning_effort", "service_tier", "store", "verbosity",
}  # fmt: skip
ADDED = {("Model", "prlhf_plain"), ("Model", "prlhf_logged")}


def unnamed(value: Any) -> Iterator[tuple[str, str]]:
    """(Model, field) of what OpenAI's models do not name, at any depth."""
    if isinstance(value, BaseModel):
        yield from ((type(value).__name__, name) for name in value.model_extra or {})
        for name in type(value).model_fields:
            yield from unnamed(getattr(value, name))
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from unnamed(each)


def strictly(model: type[BaseModel], body: Any) -> Any:
    found = model.model_validate_json(json.dumps(body, allow_nan=False), strict=True)
    assert set(unnamed(found)) <= ADDED
    return found


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def test_the_check_sees_what_is_wrong() -> None:
    good = {"id": "a", "object": "model", "created": 0, "owned_by": "b"}
    strictly(Model, good)
    for wrong in ({"created": "0"}, {"object": "models"}, {"owned_by": None}, {"extra": 1}):
        with pytest.raises((ValueError, AssertionError)):
            strictly(Model, good | wrong)


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 3}, {"max_tokens": 1}])
def test_chats(tiny: Running, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": ASKED, "user": "ann", "max_tokens": 12, "seed": 1} | more
    url = f"{tiny.url}/v1/chat/completions"
    whole = strictly(ChatCompletion, httpx.post(url, json=body, timeout=60).json())
    assert [choice.index for choice in whole.choices] == list(range(body.get("n", 1)))
    assert isinstance(whole.usage, CompletionUsage)
    assert all((choice.logprobs is not None) == ("logprobs" in more) for choice in whole.choices)
    streamed = chunks(httpx.post(url, json=body | {"stream": True}, timeout=60))
    found = [strictly(ChatCompletionChunk, chunk) for chunk in streamed]
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in streamed)
    for at, choice in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in found if chunk.choices[0].index == at]
        assert [one.delta.role for one in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": 2}, {"prompt": [PROMPT, "POST: x.\nTL;DR:"]}])
def test_completions(tiny: Running, more: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "user": "ann", "max_tokens": 12, "seed": 1} | more
    url = f"{tiny.url}/v1/completions"
    whole = strictly(Completion, httpx.post(url, json=body, timeout=60).json())
    streamed = chunks(httpx.post(url, json=body | {"stream": True}, timeout=60))
    joined: dict[int, list[int]] = {}
    for chunk in streamed:
        (choice,) = chunk["choices"]
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        strictly(Completion, chunk)
        joined.setdefault(choice["index"], []).extend((choice["logprobs"] or {"text_offset": []})["text_offset"])
    for choice in whole.choices:
        assert joined[choice.index] == (choice.logprobs.text_offset if choice.logprobs else [])


@pytest.mark.parametrize(
    ("path", "asked", "model"),
    [("chat/completions", {"messages": ASKED}, ChatCompletionChunk), ("completions", {"prompt": PROMPT}, Completion)],
)
def test_usage_of_streams(tiny: Running, path: str, asked: dict[str, Any], model: type[BaseModel]) -> None:
    body = {"model": "tiny", "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}} | asked
    *others, last = chunks(httpx.post(f"{tiny.url}/v1/{path}", json=body, timeout=60))
    assert last["choices"] == []
    assert strictly(model, last).usage.completion_tokens == 4
    assert all(chunk["usage"] is None for chunk in others)


def test_models_and_errors(tiny: Running) -> None:
    listed = httpx.get(f"{tiny.url}/v1/models").json()
    assert listed.keys() == {"object", "data"}
    assert [strictly(Model, one).id for one in listed["data"]] == ["tiny", "tiny:ann", "tiny:bob", "tiny:cat"]
    assert strictly(Model, httpx.get(f"{tiny.url}/v1/models/tiny:ann").json()).id == "tiny:ann"
    for answer in (
        httpx.get(f"{tiny.url}/v1/models/other"),
        httpx.post(f"{tiny.url}/v1/completions", json={"model": "tiny"}),
        httpx.post(f"{tiny.url}/v1/chat/completions", json={"model": "tiny", "messages": ASKED, "tools": [{}]}),
        httpx.get(f"{tiny.url}/v1/nothing"),
    ):
        assert answer.json().keys() == {"error"}
        strictly(ErrorObject, answer.json()["error"])


@pytest.mark.parametrize(("params", "ask"), [(ChatParams, ChatAsk), (TextParams, CompletionAsk)])
def test_each_field_of_a_request_is_read_or_refused_or_idle(params: Any, ask: type[BaseModel]) -> None:
    """A field that a later client has is noticed here."""
    assert params.__annotations__.keys() - ask.model_fields.keys() - NEUTRAL.keys() <= IDLE


class Tokens:
    """A tokenizer of three tokens, of which the first two are halves of a character."""

    def decode(self, ids: list[int]) -> str:
        return {(0,): "\ufffd", (1,): "\ufffd", (2,): "é"}[tuple(ids)]


def test_what_json_cannot_hold() -> None:
    """Log-probs of what cannot be, and bytes of half a character."""
    never = float("-inf")
    scored = [(token, TokenScore(never, [(2, never)])) for token in (0, 2)]
    choice = Partial("é", "stop", 2, scored)
    chat = strictly(ChatCompletion, ChatShape("tiny", Tokens(), 1).whole([choice], [3])).choices[0].logprobs
    assert [(one.bytes, one.logprob) for one in chat.content] == [(None, -9999.0), ([195, 169], -9999.0)]
    text = strictly(Completion, TextShape("tiny", Tokens(), 1).whole([choice], [3])).choices[0].logprobs
    assert (text.token_logprobs, text.top_logprobs) == ([-9999.0] * 2, [{"é": -9999.0}] * 2)
