"""Who asks, and who may: each way to name a user, unknown users, keys, and what is bound without them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from running_server import PROMPT, Running, serving

from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError
from prlhf.serve.guard import host_name
from prlhf.serve.keys import check_host, is_loopback, read_keys
from prlhf.serve.run import serve

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 16, "prompt": PROMPT}


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def keyed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text(
        f'# keys\n{hashed("of-ann")} ann\n\n{hashed("of-two")}  bob, "cat"\n{hashed("of-all").upper()} *\n'
        f"{hashed('of-zed')} zed\n"
    )
    with serving(trained, keys=path, unknown="refuse") as running:
        yield running


def test_each_way_to_say_who_asks_in_their_order(tiny: Running, alone: Callable[..., str]) -> None:
    def ask(model: str = "tiny", header: str | None = None, **fields: Any) -> str:
        headers = {"X-OpenWebUI-User-Id": header} if header else {}
        answer = httpx.post(f"{tiny.url}/v1/completions", json=GREEDY | {"model": model} | fields, headers=headers)
        assert answer.status_code == 200
        return str(answer.json()["choices"][0]["text"])

    ann, bob, cat, generic = (alone(user) for user in ("ann", "bob", "cat", "generic"))
    assert len({ann, bob, cat, generic}) == 4
    assert ask(user="ann") == ask(safety_identifier="ann") == ask(header="ann") == ask("tiny:ann") == ann
    assert ask("tiny:cat", header="bob", user="ann", safety_identifier="cat") == ann
    assert ask("tiny:cat", header="bob", safety_identifier="ann") == ann
    assert ask("tiny:cat", header="bob") == bob
    assert ask() == ask(user="generic") == ask(user="") == ask("tiny:generic") == generic
    assert ask(user="nobody") == generic


def test_another_header_can_be_named(trained: Path, alone: Callable[..., str]) -> None:
    with serving(trained, user_header="X-Who") as running:
        client = running.client(**{"X-Who": "cat", "X-OpenWebUI-User-Id": "ann"})
        assert client.completions.create(model="tiny", **GREEDY).choices[0].text == alone("cat")


def test_a_response_says_who_was_answered(tiny: Running) -> None:
    for user, served in (("ann", "user"), ("nobody", "generic"), ("José ☕", "generic")):
        headers = httpx.post(f"{tiny.url}/v1/completions", json=GREEDY | {"user": user}).headers
        assert headers["x-prlhf-served-as"] == served
    assert headers["x-prlhf-user"] == "Jos%C3%A9%20%E2%98%95"


def test_a_key_speaks_as_its_users_alone(keyed: Running, alone: Callable[..., str]) -> None:
    def ask(key: str, **fields: Any) -> str:
        return keyed.client(key).completions.create(**{"model": "tiny"} | GREEDY | fields).choices[0].text

    assert ask("of-ann", user="ann") == ask("of-ann") == ask("of-all", user="ann") == alone("ann")
    assert ask("of-two", user="bob") == alone("bob")
    assert ask("of-two") == ask("of-ann", user="generic") == alone("generic")
    for fields in ({"user": "bob"}, {"model": "tiny:bob"}, {"extra_headers": {"X-OpenWebUI-User-Id": "bob"}}):
        with pytest.raises(openai.PermissionDeniedError, match="this key may not speak as 'bob'"):
            ask("of-ann", **fields)
    with pytest.raises(openai.NotFoundError, match="the user 'nobody' is not known"):
        ask("of-all", user="nobody")
    with pytest.raises(openai.NotFoundError, match="the user 'zed' is not known"):
        ask("of-zed")
    for key in ("wrong", hashed("of-ann"), "of-ann "[:-2]):
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            ask(key)


def test_every_path_but_health_numbers_needs_a_key(keyed: Running) -> None:
    for path in ("/v1/models", "/v1/models/tiny"):
        assert httpx.get(keyed.url + path).status_code == 401
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert httpx.post(keyed.url + path, json=GREEDY).status_code == 401
    assert [httpx.get(keyed.url + path).status_code for path in ("/healthz", "/metrics")] == [200, 200]
    assert [one.id for one in keyed.client("of-two").models.list()] == ["tiny", "tiny:bob", "tiny:cat"]
    assert len(list(keyed.client("of-all").models.list())) == 4


def test_keys_and_texts_are_not_logged(keyed: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        keyed.client("of-ann").completions.create(model="tiny", **GREEDY)
        with pytest.raises(openai.AuthenticationError):
            keyed.client("a-wrong-one").completions.create(model="tiny", **GREEDY)
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("prlhf", "uvicorn", "fastapi")))
    assert not [secret for secret in ("of-ann", "a-wrong-one", "boss") if secret in ours]


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "example.com", "192.168.0.1"):
        with pytest.raises(PrlhfError, match="lets other machines speak as any user; give --keys FILE"):
            serve(tmp_path / "no-run", ServeConfig(host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        check_host(ServeConfig(host=host))
    check_host(ServeConfig(host="0.0.0.0", keys=tmp_path / "keys.txt"))
    assert [is_loopback(host) for host in ("localhost.evil", "", "10.0.0.1", "[::1]")] == [False, False, False, True]
    assert [host_name(host) for host in ("a:80", "[::1]:80", "a", "[::1]")] == ["a", "::1", "a", "::1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "hold no key"),
        ("# nothing\n", "hold no key"),
        ("secret ann\n", "line 1 of the keys"),
        (f"{'0' * 64}\n", "line 1 of the keys"),
        (f"{'0' * 64} ann\n{'0' * 64} bob\n", "line 2 of the keys"),
        (f'{"0" * 64} "ann\n', "line 1 of the keys"),
    ],
)
def test_a_file_of_keys_that_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(PrlhfError, match=said) as caught:
        read_keys(path)
    assert "secret" not in str(caught.value)
    with pytest.raises(PrlhfError, match="cannot read the keys"):
        read_keys(tmp_path / "none")
