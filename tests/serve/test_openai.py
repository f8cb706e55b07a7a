"""The API as OpenAI's own client uses it, with and without streaming, and as other clients' requests look."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest
from running_server import PROMPT, Running

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
ASKED: list[Any] = [{"role": "user", "content": PROMPT}]


def test_a_completion_is_what_generate_writes(tiny: Running, alone: Callable[..., str]) -> None:
    for user in ("ann", "bob", "cat", "generic"):
        found = tiny.client().completions.create(model="tiny", prompt=PROMPT, user=user, **GREEDY)
        assert found.choices[0].text == alone(user)
    assert len({alone(user) for user in ("ann", "bob", "cat", "generic")}) > 2
    assert found.object == "text_completion"
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens > 0


def test_a_chat_of_a_run_on_plain_text_takes_one_message(tiny: Running, alone: Callable[..., str]) -> None:
    found = tiny.client().chat.completions.create(model="tiny", messages=ASKED, user="bob", **GREEDY)
    assert found.choices[0].message.content == alone("bob")
    assert found.choices[0].message.role == "assistant"
    with pytest.raises(openai.BadRequestError, match="trained on plain prompts"):
        tiny.client().chat.completions.create(model="tiny", messages=ASKED * 2)


@pytest.mark.parametrize("user", ["ann", "cat"])
def test_a_stream_joined_is_the_whole(tiny: Running, alone: Callable[..., str], user: str) -> None:
    options: dict[str, Any] = {"model": "tiny", "user": user, "stream_options": {"include_usage": True}, **GREEDY}
    text = list(tiny.client().completions.create(prompt=PROMPT, stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in text[:-1]) == alone(user)
    assert sum(bool(chunk.choices[0].text) for chunk in text[:-1]) > 2
    assert [chunk.choices[0].finish_reason for chunk in text[:-1]][-2:] in ([None, "length"], [None, "stop"])
    assert text[-1].choices == []
    assert text[-1].usage is not None
    chat = list(tiny.client().chat.completions.create(messages=ASKED, stream=True, **options))
    assert chat[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat[:-1]) == alone(user)
    assert len({chunk.id for chunk in chat}) == 1
    assert chat[-1].usage == text[-1].usage.model_copy() or chat[-1].usage is not None


def test_samples_depend_on_the_seed_and_are_those_of_generate(tiny: Running, alone: Callable[..., str]) -> None:
    def sample(**more: Any) -> list[str]:
        options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "user": "ann", "max_tokens": 8} | more
        return [choice.text for choice in tiny.client().completions.create(**options).choices]

    assert sample(seed=5) == [alone("ann", temperature=1.0, max_new_tokens=8, seed=5)]
    assert sample(seed=5, top_p=0.3, temperature=0.7) == [
        alone("ann", temperature=0.7, top_p=0.3, max_new_tokens=8, seed=5)
    ]
    several = sample(seed=5, n=3)
    assert several[:1] == sample(seed=5)
    assert len(set(several)) == 3
    assert sample() != sample()
    assert sample(prompt=[PROMPT, "POST: x.\nTL;DR:"], seed=5) == [
        alone("ann", text, temperature=1.0, max_new_tokens=8, seed=5) for text in (PROMPT, "POST: x.\nTL;DR:")
    ]


def test_a_stop_text_ends_a_response_and_stays_out(tiny: Running, alone: Callable[..., str]) -> None:
    whole = alone("ann")
    stop = whole[5:8]
    for streamed in (False, True):
        options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "user": "ann", **GREEDY}
        found: Any = tiny.client().completions.create(stop=["never", stop], stream=streamed, **options)
        chunks = list(found) if streamed else [found]
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.partition(stop)[0]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probs(tiny: Running) -> None:
    chat = tiny.client().chat.completions.create(
        model="tiny", messages=ASKED, user="ann", logprobs=True, top_logprobs=2, **GREEDY
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert chat.usage is not None
    assert len(content) == chat.usage.completion_tokens
    assert all(one.top_logprobs[0].logprob == one.logprob < 0 and len(one.top_logprobs) == 2 for one in content)
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    text = tiny.client().completions.create(model="tiny", prompt=PROMPT, user="ann", logprobs=1, **GREEDY)
    scores = text.choices[0].logprobs
    assert scores is not None
    assert scores.token_logprobs == [one.logprob for one in content]
    assert scores.text_offset is not None
    assert scores.text_offset[1] == len(content[0].token)
    plain = tiny.client().completions.create(model="tiny", prompt=PROMPT, **GREEDY)
    assert plain.choices[0].logprobs is None


def test_the_newer_name_of_max_tokens_counts(tiny: Running) -> None:
    chat = tiny.client().chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=9, max_completion_tokens=2, temperature=0
    )
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 2
    assert chat.choices[0].finish_reason == "length"
    unlimited = {"model": "tiny", "prompt": PROMPT, "max_tokens": -1}
    assert httpx.post(f"{tiny.url}/v1/completions", json=unlimited).status_code == 200


def test_requests_of_other_clients(tiny: Running, alone: Callable[..., str]) -> None:
    """Open WebUI's, with its header, and those of llama.cpp's page, with fields that only it knows."""
    webui = {
        "model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
        "stream": False, "temperature": 0, "max_tokens": 16, "chat_id": "1", "id": "2", "session_id": "3",
        "features": {"web_search": False}, "variables": {}, "metadata": None, "tools": [],
    }  # fmt: skip
    found = httpx.post(f"{tiny.url}/v1/chat/completions", json=webui, headers={"X-OpenWebUI-User-Id": "cat"})
    assert found.json()["choices"][0]["message"]["content"] == alone("cat")
    llama = {
        "messages": ASKED, "stream": True, "cache_prompt": True, "samplers": "edkypmxt", "temperature": 0, "top_k": 40,
        "min_p": 0.05, "repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 16,
        "timings_per_token": False, "reasoning_format": "auto",
    }  # fmt: skip
    with httpx.stream("POST", f"{tiny.url}/v1/chat/completions", json=llama) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])


def test_models(tiny: Running) -> None:
    names = [one.id for one in tiny.client().models.list()]
    assert names == ["tiny", "tiny:ann", "tiny:bob", "tiny:cat"]
    assert tiny.client().models.retrieve("tiny:bob").id == "tiny:bob"
    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
        tiny.client().models.retrieve("other")


def test_health_and_numbers(tiny: Running) -> None:
    tiny.client().completions.create(model="tiny", prompt=PROMPT, **GREEDY)
    assert httpx.get(f"{tiny.url}/healthz").json() == {"status": "ok", "waiting": 0, "writing": 0}
    text = httpx.get(f"{tiny.url}/metrics").text
    assert 'prlhf_requests_total{path="/v1/completions",status="200"}' in text
    for name in ("prlhf_tokens_total", "prlhf_prompt_tokens_total", "prlhf_first_token_seconds_count"):
        assert float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1]) > 0
    assert "ann" not in text


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "other"}, 404, "the model 'other' does not exist; this server has 'tiny'"),
        ({"model": "tiny-2"}, 404, "does not exist"),
        ({"prompt": None}, 400, "prompt: Field required"),
        ({"prompt": [1, 2]}, 400, "prompt"),
        ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2"),
        ({"n": 0}, 400, "n: "),
        ({"n": 9}, 400, "at most 8 responses"),
        ({"max_tokens": 0}, 400, "max_tokens: from 1 to 1,024"),
        ({"max_tokens": 2000}, 400, "max_tokens: from 1 to 1,024"),
        ({"stop": ["a"] * 5}, 400, "stop: at most 4 texts"),
        ({"stop": ""}, 400, "stop"),
        ({"logprobs": 6}, 400, "logprobs"),
        ({"echo": True}, 400, "echo is not offered by this server"),
        ({"best_of": 3}, 400, "best_of is not offered"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not offered"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias is not offered"),
        ({"prompt_embeds": "UEsDBA=="}, 400, "prompt_embeds is not accepted"),
        ({"inputs_embeds": [[0.1]]}, 400, "inputs_embeds is not accepted"),
        ({"prompt": "word " * 400}, 400, "tokens"),
        ({"stop": "\ud800"}, 400, "half of a surrogate pair"),
    ],
)
def test_what_is_refused(tiny: Running, fields: dict[str, Any], status: int, said: str) -> None:
    body = {"model": "tiny", "prompt": PROMPT} | fields
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{tiny.url}/v1/completions", content=json.dumps(body), headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


def test_other_refusals_have_the_same_shape(tiny: Running) -> None:
    post, url = httpx.post, f"{tiny.url}/v1/chat/completions"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    embeds = [{"role": "user", "content": [{"type": "prompt_embeds", "data": "UEs="}]}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    for status, answer in [
        (400, post(url, json={"messages": image})),
        (400, post(url, json={"messages": embeds})),
        (400, post(url, json={"messages": ASKED, "tools": tools})),
        (400, post(url, json={"messages": []})),
        (400, post(url, content=b"{", headers={"content-type": "application/json"})),
        (400, post(url, content=b"[1]", headers={"content-type": "application/json"})),
        (400, post(url, content=b'{"messages": []}', headers={"content-type": "text/plain"})),
        (413, post(url, content=b" " * 2**21, headers={"content-type": "application/json"})),
        (413, post(url, content=iter([b" " * 2**20] * 2), headers={"content-type": "application/json"})),
        (404, httpx.get(f"{tiny.url}/v1/nothing")),
        (404, post(f"{tiny.url}/v1/embeddings", json={"input": "a"})),
        (405, httpx.get(url)),
        (403, httpx.get(f"{tiny.url}/healthz", headers={"host": "evil.example:80"})),
    ]:
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"], answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
