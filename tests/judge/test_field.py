"""What real judges send: thoughts, answers that are cut off, errors of status 200; and parameters they refuse."""

# ruff: noqa: E501 (bodies of replies)

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from judge_rows import MakeConfig
from scripted import Body, Reply, error, prefers, said, serving

from prlhf.errors import PrlhfError
from prlhf.judge.llm.answers import verdict_in
from prlhf.judge.llm.cache import AnswerCache
from prlhf.judge.llm.replies import Fault, error_in, read_completion, read_reply
from prlhf.judge.llm.server import refused, server_of
from prlhf.judge.run import dry_run, judge_responses

Files = tuple[Path, Path]
LABELS = {"K4B": "A", "W7D": "B", "H2T": "tie"}
GOOD = '{"reason": "it weighs K4B", "verdict": "K4B"}'
KEY = "sk-planted-7f3e9a"
longer = prefers(lambda text: len(text.split()))


def codes(body: Body) -> list[str]:
    asked = re.findall(r"do you choose, (\w+) or (\w+), or (\w+) for a tie", body["messages"][-1]["content"])
    return list(asked[-1])


def tie(body: Body) -> Reply:
    return said(codes(body)[2])


# ---- thoughts ----

CLOSED = [
    "<think>W7D?</think>", "<thinking>\nVerdict: W7D\n</thinking>\n", "<reasoning>W7D</reasoning>", "[THINK]W7D[/THINK]",
    "◁think▷W7D◁/think▷", "<|begin_of_thought|>W7D<|end_of_thought|>", "<|START_THINKING|>W7D<|END_THINKING|>",
    "Hm, W7D.\n</think>\n", "<think>a<think>b</think>c</think>", "<seed:think>W7D</seed:think>", "<THINK>W7D</THINK>",
    "<|channel|>analysis<|message|>W7D!<|end|><|start|>assistant<|channel|>final<|message|>", "analysisW7D?assistantfinal",
    "<unused94>thought\nW7D<unused95>", "<|channel>thought\nW7D<channel|>",
]  # fmt: skip


@pytest.mark.parametrize("thoughts", CLOSED)
@pytest.mark.parametrize("answer", [GOOD, "K4B", f"```json\n{GOOD}\n```", "Verdict: K4B", "<answer>K4B</answer>"])
def test_what_follows_the_thoughts_is_the_answer(thoughts: str, answer: str) -> None:
    assert verdict_in(thoughts + answer, LABELS) == "A"  # type: ignore[arg-type]


@pytest.mark.parametrize("opening", ["<think>", "<thinking>\n", "[THINK]", "◁think▷", "<reasoning>",
                                     "<|channel|>analysis<|message|>"])  # fmt: skip
@pytest.mark.parametrize("inside", ["Verdict: K4B", "K4B", f"Perhaps\n{GOOD}"])
def test_thoughts_that_do_not_end_hold_no_verdict(opening: str, inside: str) -> None:
    assert verdict_in(opening + inside, LABELS) is None  # type: ignore[arg-type]


def test_a_reason_may_quote_the_mark_and_a_cut_answer_has_no_last_line() -> None:
    quoted = '{"reason": "it says </think> and <think>", "verdict": "W7D"}'
    assert verdict_in(quoted, LABELS) == "B"  # type: ignore[arg-type]
    assert verdict_in(f"<think>K4B</think>{quoted}", LABELS) == "B"  # type: ignore[arg-type]
    assert verdict_in("Hm.\nVerdict: K4B", LABELS, cut=True) is None  # type: ignore[arg-type]
    assert verdict_in(GOOD, LABELS, cut=True) == "A"  # type: ignore[arg-type]


def test_of_parts_the_text_counts() -> None:
    parts: list[Any] = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "W7D"}]},
        {"type": "text", "text": "K4B"},
    ]
    answer = read_completion({"choices": [{"message": {"content": parts}}]}, 0.0)
    assert (answer.text, answer.thoughts) == ("K4B", True)


# ---- answers that are cut off ----


def thinks(needed: int) -> Any:
    def script(body: Body, number: int) -> Reply:
        if body["max_completion_tokens"] >= needed:
            return longer(body, number)
        reply = said(None, reasoning_content="Let me think. Verdict: " + codes(body)[0])
        reply.body["choices"][0]["finish_reason"] = "length"
        return reply

    return script


def test_a_cut_answer_is_asked_for_once_more_with_more(two_files: Files, llm: MakeConfig) -> None:
    with serving(thinks(2000)) as server:
        results = judge_responses(*two_files, llm(server.url))
        assert (results.wins, results.losses, results.unparsed["pairs"]) == (2, 2, 0)
        allowed = [body["max_completion_tokens"] for body in server.requests]
        assert allowed == [300] * 8 + [4096] * 12  # the last four pairs are not asked in vain
        assert judge_responses(*two_files, llm(server.url)).calls == 0
        assert dry_run(*two_files, llm(server.url))[0].calls == 0


def test_answers_that_stay_cut_are_named(two_files: Files, llm: MakeConfig) -> None:
    with serving(thinks(10**6)) as server:
        with pytest.raises(
            PrlhfError, match=r"12 of 12 answers were cut off at max_answer_tokens = 300; raise --max-ans"
        ):
            judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 8 + 12
        with pytest.raises(PrlhfError, match="cut off"):
            judge_responses(*two_files, llm(server.url, max_answer_tokens=500, raised_answer_tokens=500))
        assert len(server.requests) == 20 + 12


def test_a_raised_allowance_that_is_refused_leaves_the_cut_answer(two_files: Files, llm: MakeConfig) -> None:
    def script(body: Body, number: int) -> Reply:
        if body["max_completion_tokens"] > 300:
            return error(400, "max_tokens is too large: 4096. This model supports at most 1024")
        return thinks(10**6)(body, number) if "a0" in body["messages"][-1]["content"] else longer(body, number)

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url))
    assert (results.unparsed["pairs"], results.n_samples) == (3, 3)


# ---- errors with status 200 ----

ERRORS = {
    "router": ({"error": {"message": "Provider returned error", "code": 429}}, 429),
    "text": ({"error": "Rate limit reached"}, 429),
    "in the choice": ({"choices": [{"error": {"code": 502, "message": "x"}, "finish_reason": "error"}]}, 502),
    "finish": ({"choices": [{"finish_reason": "error", "message": {"content": "half"}}]}, 500),
    "list": ([{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}], 503),
    "vllm": ({"object": "error", "message": "no such model", "code": 404}, 404),
    "flag": ({"success": False, "msg": "Unauthorized", "code": "401"}, 401),
    "base_resp": ({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, 429),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_in_a_body_has_a_status(kind: str) -> None:
    body, status = ERRORS[kind]
    with pytest.raises(Fault) as caught:
        read_completion(body, 0.0)
    assert caught.value.status == status


NO_REPLY = [b"", b"<!doctype html><title>Chat</title>", b"hello", b"[]", b"3", b"null", b'{"choices": ', b"\xff\xfe{}"]


@pytest.mark.parametrize("content", NO_REPLY)
def test_what_is_no_reply_is_never_kept(two_files: Files, llm: MakeConfig, content: bytes, tmp_path: Path) -> None:
    with serving(lambda body, number: Reply(raw=content)) as server:
        with pytest.raises(PrlhfError, match=r"no OpenAI-compatible API at http.*is /v1 missing") as caught:
            judge_responses(*two_files, llm(server.url, retries=2))
        assert "\n" not in str(caught.value)
        assert len(server.requests) == 3
        assert b"".join(path.read_bytes() for path in (tmp_path / "cache/judge").glob("*.jsonl")) == b""
        server.script = longer
        assert judge_responses(*two_files, llm(server.url)).calls == 12


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"choices": [{"message": {"content": "Ver"}, "finish_reason": "content_filter"}]}),
        error(400, "The response was filtered due to the prompt triggering Azure's content management policy",
              code="content_filter"),
        Reply({"error": {"code": 403, "message": "Your chosen model requires moderation and your input was flagged"}}),
    ],
    ids=["finish", "azure", "router"],
)  # fmt: skip
def test_a_filtered_pair_has_no_verdict_and_the_others_have(two_files: Files, llm: MakeConfig, reply: Reply) -> None:
    def script(body: Body, number: int) -> Reply:
        return reply if "anna" in body["messages"][-1]["content"] or "three a0" in str(body) else longer(body, number)

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url))
        assert (results.unparsed["pairs"], results.n_samples, results.unanswered) == (1, 5, 2)
        assert len(server.requests) == 12
        server.script = longer
        assert judge_responses(*two_files, llm(server.url)).calls == 2  # asked again


@pytest.mark.parametrize("choices", [None, [], [{}], [{"message": "text"}], "x"])
def test_a_reply_without_a_message_is_asked_anew(two_files: Files, llm: MakeConfig, choices: Any) -> None:
    def script(body: Body, number: int) -> Reply:
        return Reply({"choices": choices}) if "three a0" in str(body) else longer(body, number)

    with serving(script) as server:
        results = judge_responses(*two_files, llm(server.url, retries=1))
        assert (results.unparsed["pairs"], results.unanswered, len(server.requests)) == (1, 2, 14)
        server.script = lambda body, number: Reply({"choices": choices})
        with pytest.raises(PrlhfError, match=r"sends no valid answer: a (reply|choice) without"):
            judge_responses(*two_files, llm(server.url, retries=0, seed=1, concurrency=1))
        assert len(server.requests) == 14 + 10  # such a server does not get all twelve
        server.script = longer
        assert judge_responses(*two_files, llm(server.url)).calls == 2


def test_what_an_earlier_version_kept_of_errors_is_not_used(tmp_path: Path) -> None:
    old = {"prompt_tokens": 0, "completion_tokens": 0, "seconds": 0.1}
    rows = [
        {"request": "a", "text": None, **old, "finish_reason": "empty"},
        {"request": "b", "text": None, **old, "finish_reason": "stop"},
        {"request": "c", "text": "K4B", **old, "finish_reason": "stop"},
        {"request": "d", "text": "half", **old, "finish_reason": "content_filter"},
    ]
    damaged = [
        b"\x00\x00",
        b"[1]",
        b'{"request": "e", "text": 3}',
        "{}".encode("utf-16"),
        b"[" * 5000,
        b'{"request": "f',
    ]
    lines = [json.dumps(row).encode() for row in rows] + damaged
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    assert set(AnswerCache(tmp_path / "x.jsonl").known) == {"c"}


def test_a_cache_that_cannot_be_written_is_told(two_files: Files, llm: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    with serving(longer) as server:
        assert judge_responses(*two_files, llm(server.url)).wins == 2
        with pytest.raises(PrlhfError, match="--batch cannot note what it submits"):
            judge_responses(*two_files, llm(server.url, batch=True))


# ---- parameters that a server does not take ----

REFUSED = {
    "mistral": ("max_completion_tokens", 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"]}]}),
    "o-series": ("temperature", 400, {"error": {"message": "Unsupported value: 'temperature' does not support 0", "param": "temperature"}}),
    "schema": ("response_format", 405, {"error": {"message": "json_schema is not supported for this model"}}),
    "router": ("response_format", 404, {"error": {"message": "No endpoints found that support structured outputs", "code": 404}}),
    "silent": ("seed", 400, {"error": {"message": "Bad Request"}}),
    "silent schema": ("response_format", 415, {}),
    "silent limit": ("max_completion_tokens", 422, {"error": "unprocessable"}),
    "grammar": ("response_format", 500, {"error": {"message": "failed to parse grammar"}}),
    "not implemented": ("temperature", 501, {"error": {"message": "no"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_in_any_words_is_left_out(two_files: Files, llm: MakeConfig, kind: str) -> None:
    parameter, status, body_said = REFUSED[kind]
    with serving(lambda body, number: Reply(body_said, status) if parameter in body else tie(body)) as server:
        assert judge_responses(*two_files, llm(server.url, retries=0)).ties == 6
        assert sum(parameter in body for body in server.requests) <= 7
        assert all(parameter not in body for body in server.requests[-11:])
        kept = {"temperature", "seed", "response_format"} - {parameter}
        assert all(kept <= body.keys() for body in server.requests[-11:])  # nothing else is lost by it


def test_a_system_message_that_is_refused_begins_the_users(two_files: Files, llm: MakeConfig) -> None:
    def script(body: Body, number: int) -> Reply:
        return error(400, "System role not supported") if len(body["messages"]) > 1 else tie(body)

    with serving(script) as server:
        assert judge_responses(*two_files, llm(server.url)).ties == 6
        assert len(server.requests) == 13


def test_leave_out_and_extra_body(two_files: Files, llm: MakeConfig) -> None:
    with serving(lambda body, number: tie(body)) as server:
        more = {"leave_out": "seed, max_completion_tokens,json_schema", "extra_body": {"reasoning_effort": "low"}}
        judge_responses(*two_files, llm(server.url, **more))
        (body, *_) = server.requests
        assert body.keys() == {"model", "messages", "temperature", "max_tokens", "response_format", "reasoning_effort"}
        assert body["response_format"] == {"type": "json_object"}
        for wrong in ({"leave_out": "sead"}, {"extra_body": {"seed": 1}}):
            with pytest.raises(PrlhfError, match="names"):
                judge_responses(*two_files, llm(server.url, **wrong))


# ---- a fuzz over replies ----


def test_mutated_replies_are_answers_or_faults() -> None:
    """20,000 replies, mutated from 30 seeds: each becomes an answer, or a fault of one line."""
    import random

    rng, server = random.Random(0), server_of("http://127.0.0.1:1/v1")
    seeds = [json.dumps(body).encode() for body, _ in ERRORS.values()] + NO_REPLY
    seeds += [json.dumps(said(start + GOOD).body).encode() for start in CLOSED]
    pieces = [b"null", b"[]", b"{}", b"-1", b"1e999", b'"x"', b"\x00", b"\\ud800", b"[" * 2000, b'"error":', b'"choices":', b"NaN",
              b"9" * 5000, b'{"message":', b'"content":', b"</think>", b"<think>"]  # fmt: skip
    counts = {"answers": 0, "faults": 0}
    for _ in range(20_000):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            start = rng.randrange(len(content) + 1)
            content[start : start + rng.choice([0, 1, 3, 10, 40])] = rng.choice(
                [b"", rng.choice(pieces), rng.choice(seeds)[:60]]
            )
        try:
            answer = read_reply(bytes(content), {}, 0.0)
        except Fault as fault:
            lines = str(refused(server, fault)).splitlines()
            assert len(lines) == 1
            counts["faults"] += 1
            continue
        counts["answers"] += 1
        verdict_in(answer.text, LABELS, answer.cut)  # type: ignore[arg-type]
        json.dumps([answer.text, answer.prompt_tokens]).encode()
        error_in(json.loads(content), 400)
    assert min(counts.values()) > 500, counts
