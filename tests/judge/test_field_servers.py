"""Real servers: waits, keys, proxies, Azure, batches; and the options that a judge uses."""

# ruff: noqa: E501 (bodies of replies)

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from judge_rows import MakeConfig
from scripted import Body, Reply, error, prefers, said, serving
from test_llm_faults import Batches

from prlhf.errors import PrlhfError
from prlhf.judge.llm.replies import retry_after
from prlhf.judge.llm.server import exempt, proxy_of, server_of
from prlhf.judge.run import judge_responses

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


# ---- waits, keys, proxies, Azure ----


@pytest.mark.parametrize("header", ["3600", "1e12", "inf", "Wed, 01 Jan 2200 00:00:00 GMT"])
def test_a_long_wait_ends_in_a_line(two_files: Files, llm: MakeConfig, header: str) -> None:
    with serving(lambda body, number: error(429, "tokens per day", {"Retry-After": header})) as server:
        with pytest.raises(PrlhfError, match=r"asks to wait .*(minutes|hours).*--max-wait"):
            judge_responses(*two_files, llm(server.url))
        assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["nan", "-5", "", "0", "soon", "Wed, 99 Foo"])
def test_a_wait_that_is_none(header: str) -> None:
    assert not retry_after({"retry-after": header})


def test_a_key_in_an_answer_is_not_kept(
    two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body, number: said(f"key {KEY}\nVerdict: {codes(body)[2]}")) as server:
        judge_responses(*two_files, llm(server.url))
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("value", "said_of"),
    [("ftp://x", "ALL_PROXY is not a proxy"), ("http://", "not a proxy"), ("http://u:secret@h:99999", "not a proxy"),
     ("socks4://u:secret@h:1", "not a proxy")],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, value: str, said_of: str) -> None:
    clean(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(PrlhfError, match=said_of) as caught:
        proxy_of("http://judge.example/v1")
    assert "secret" not in str(caught.value)


def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    clean(monkeypatch)
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9/")
    monkeypatch.setattr("prlhf.judge.llm.server.find_spec", lambda name: None)
    with pytest.raises(PrlhfError, match=r"ALL_PROXY .*pip install socksio.*NO_PROXY"):
        proxy_of("http://127.0.0.1:8000/v1")
    monkeypatch.setenv("NO_PROXY", "localhost, 127.0.0.0/8")
    assert proxy_of("http://127.0.0.1:8000/v1") is None


def test_a_proxy_that_is_down_is_named(two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with pytest.raises(PrlhfError, match=r"through the proxy of HTTP_PROXY \(http://127.0.0.1:9\)") as caught:
        judge_responses(*two_files, llm("http://judge.example/v1", retries=0))
    assert "secret" not in str(caught.value)


def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("host", "names", "found"),
    [("a.corp", ".corp", True), ("acorp", "corp", False), ("a.corp", "*.corp", True), ("h", "*", True), ("h", "", False),
     ("h", "h:80", True), ("h", "h:81", False), ("10.1.2.3", "10.0.0.0/8", True), ("::1", "::1", True)],
)  # fmt: skip
def test_hosts_that_are_exempt(host: str, names: str, found: bool) -> None:
    assert exempt(host, 80, names) is found


@pytest.mark.parametrize("path", ["", "/", "/openai", "/openai/deployments/d/chat/completions?api-version=1"])
def test_azure(two_files: Files, llm: MakeConfig, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    with serving(longer) as server:
        url = server.url.removesuffix("/v1") + path
        judge_responses(*two_files, llm(url, judge_model="d", api_version="2024-10-21"))
        assert {(got["path"], got["api-key"]) for got in server.heads} == {
            ("/openai/deployments/d/chat/completions?api-version=2024-10-21", KEY)
        }


def test_an_azure_address_wants_a_version_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PrlhfError, match="--api-version"):
        server_of("https://r.openai.azure.com/")
    with pytest.raises(PrlhfError, match="set AZURE_OPENAI_API_KEY"):
        server_of("https://r.openai.azure.com/", "2024-10-21")
    assert server_of("https://r.openai.azure.com/openai/v1").api_version == ""


@pytest.mark.parametrize("address", ["http://[::1", "http://h:99999/v1", "http://me:secret@/v1", "http://h:x/v1"])
def test_an_address_that_cannot_be_read(address: str) -> None:
    with pytest.raises(PrlhfError, match="is not an address") as caught:
        server_of(address)
    assert "secret" not in str(caught.value)


# ---- batches ----


def test_a_batch_whose_id_was_never_heard_is_found_by_its_name(two_files: Files, llm: MakeConfig) -> None:
    with serving(longer) as server:
        batches = Batches(server)

        def dies(method: str, path: str, content: bytes) -> Reply:
            reply = batches(method, path, content)
            if method == "POST" and path.endswith("/batches"):
                return error(400, "as if the command had died here")
            return reply

        server.others = dies
        with pytest.raises(PrlhfError, match="as if the command had died"):
            judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01))
        server.others = batches
        assert judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01)).wins == 2
        assert (len(batches.batches), len(batches.submitted)) == (1, 12)


def test_what_a_batch_refuses_is_left_out_and_a_note_that_is_damaged_is_told(
    two_files: Files, llm: MakeConfig, tmp_path: Path
) -> None:
    with serving(longer) as server:
        batches = Batches(server)
        answer = batches.answer

        def refuses(line: dict[str, Any]) -> str:
            if "seed" in line["body"]:
                response = {"status_code": 400, "body": {"error": {"message": "Unsupported parameter: 'seed'"}}}
                return json.dumps({"custom_id": line["custom_id"], "response": response})
            return answer(line)

        batches.answer = refuses  # type: ignore[method-assign, assignment]
        assert judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01)).wins == 2
        assert len(batches.batches) == 2
        (note,) = (tmp_path / "cache/judge").glob("*.batches.json")
        for damaged in ("", "{", "[1, {}]", "3", '["gone"]'):
            note.write_text(damaged)
            seed = hash(damaged) % 1000 + 1
            judge_responses(*two_files, llm(server.url, batch=True, batch_poll=0.01, seed=seed, leave_out="seed"))


# ---- judges and the options that they use ----

UNUSED = [
    ("rule:longer", "judge_model", "m"), ("rule:longer", "prompt", "x.jinja"), ("rule:longer", "dataset", "d"),
    ("rule:longer", "max_answer_tokens", 9), ("rule:longer", "order", "ab"), ("rule:shorter", "model", "m"),
    ("rule:longer", "batch", True), ("oracle:d", "base_url", "http://x"), ("oracle:d", "device", "cpu"),
    ("llm:m", "judge_model", "other"), ("llm:m", "model", "base"), ("llm:m", "batch_poll", 1.0),
    ("rule:longer,rule:shorter", "max_cost", 1.0), ("llm:m", "trust_remote_code", True),
]  # fmt: skip


@pytest.mark.parametrize(("judge", "key", "value"), UNUSED)
def test_an_option_that_the_judge_does_not_use_is_refused(
    two_files: Files, llm: MakeConfig, judge: str, key: str, value: Any
) -> None:
    plain = {"judge": judge, "judge_model": None, "base_url": None, "protocol": None, "backoff": 1.0, "timeout": 120.0}
    with pytest.raises(PrlhfError, match=rf"^{key} = .* is not used by --judge {re.escape(judge)}"
                       if key != "judge_model" or judge != "llm:m" else "judge_model = other is not used"):  # fmt: skip
        judge_responses(*two_files, llm(None, **plain | {key: value}))


def test_a_judge_must_be_named(two_files: Files, llm: MakeConfig) -> None:
    with pytest.raises(
        PrlhfError, match=r"no judge is named; add --judge NAME: rule:shorter, rule:longer, oracle:DATASET"
    ):
        judge_responses(*two_files, llm("http://x/v1", judge=None))
