"""Conversations are kept only where that was asked for; they are listed by user, exported, and forgotten."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from running_server import PROMPT, Running, serving

import prlhf
from prlhf.adapt.forget import forget_user
from prlhf.choice_store import FILE, ChoiceStore
from prlhf.errors import PrlhfError


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


@pytest.fixture
def logging(run: Path) -> Iterator[Running]:
    with serving(run, adapt_every=0, log_conversations=True) as running:
        yield running


def ask(running: Running, path: str = "completions", **fields: Any) -> Any:
    body = {"model": "tiny", "max_tokens": 6, "temperature": 0} | fields
    return httpx.post(f"{running.url}/v1/{path}", json=body, timeout=60)


def kept(running: Running, count: int) -> list[Any]:
    running.until(lambda: running.service.log.kept == count)
    return list(running.service.keeper.store.conversations())


def test_nothing_is_kept_by_default(run: Path) -> None:
    with serving(run, adapt_every=0) as running:
        assert ask(running, prompt=f"{PROMPT} zebrafish", user="ann").status_code == 200
        assert running.service.keeper.store.talkers() == []
        assert httpx.get(f"{running.url}/v1/models").json()["data"][0]["prlhf_logged"] is False
    assert not any(b"zebrafish" in path.read_bytes() for path in run.rglob("*") if path.is_file())
    with pytest.raises(PrlhfError, match="has no conversations; serve it with log_conversations = true"):
        prlhf.conversations(run, out=run / "none.jsonl")
    assert not (run / "none.jsonl").exists()


def test_requests_are_kept_with_what_was_answered(logging: Running, run: Path, tmp_path: Path) -> None:
    one = ask(logging, prompt=[PROMPT, "POST: x.\nTL;DR:"], n=2, seed=1, temperature=1, user="ann").json()["choices"]
    first, second = kept(logging, 1)
    assert [(each.user_id, each.prompt) for each in (first, second)] == [("ann", PROMPT), ("ann", "POST: x.\nTL;DR:")]
    assert first.responses + second.responses == [choice["text"] for choice in one]
    messages = [{"role": "user", "content": PROMPT}]
    stream = ask(logging, "chat/completions", messages=messages, stream=True, user="bob").text
    (third,) = kept(logging, 2)[2:]
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in stream.split("\n\n")[:-2]]
    assert (third.user_id, third.prompt) == ("bob", messages)
    assert third.responses == ["".join(delta.get("content", "") for delta in deltas)]
    ask(logging, prompt=PROMPT)
    assert kept(logging, 3)[3].user_id == "generic"
    assert ask(logging, prompt="word " * 500, user="eve").status_code == 400  # and nothing is kept of it
    assert "prlhf_conversations_kept 3.0" in httpx.get(f"{logging.url}/metrics").text
    assert httpx.get(f"{logging.url}/v1/models").json()["data"][0]["prlhf_logged"] is True

    found = prlhf.conversations(run)
    assert [(user.user_id, user.conversations) for user in found.users] == [("ann", 2), ("bob", 1), ("generic", 1)]
    assert found.users[0].last == second.at
    found = prlhf.conversations(run, out=tmp_path / "bob.jsonl", user="bob")
    assert [user.user_id for user in found.users] == ["bob"]
    (row,) = [json.loads(line) for line in (tmp_path / "bob.jsonl").read_text().splitlines()]
    assert row == {"user_id": "bob", "at": third.at, "prompt": messages, "responses": third.responses}


def test_forgetting_reaches_conversations(logging: Running, run: Path) -> None:
    """Of somebody whom the model knows, and of somebody whom it does not."""
    for user in ("ann", "bob", "zoe"):
        ask(logging, prompt=f"POST: the secret of {user}.\nTL;DR:", user=user)
    kept(logging, 3)
    forget_user(run, "ann")
    assert prlhf.forget(run, "zoe").user_index is None
    files = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"secret of bob" in files
    assert b"secret of ann" not in files
    assert b"secret of zoe" not in files
    with pytest.raises(PrlhfError, match="user 'zoe' is unknown"):
        prlhf.forget(run, "zoe")
    removed = prlhf.feedback(run, user="bob")
    assert (removed.choices, removed.conversations) == (0, 1)
    assert logging.service.keeper.store.talkers() == []


def test_a_disk_that_fails_fails_no_request(logging: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PrlhfError("cannot use it", "check the disk")

    monkeypatch.setattr(ChoiceStore, "log", refuse)
    assert ask(logging, prompt=PROMPT, user="ann").status_code == 200
    logging.until(lambda: logging.service.log.lost == 1)


def test_what_was_written_before_the_end_is_kept(run: Path) -> None:
    """When a server stops, and from a client that hangs up."""
    with serving(run, adapt_every=0, log_conversations=True) as running:
        body = {"prompt": PROMPT, "user": "ann", "stream": True, "max_tokens": 64, "seed": 1}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
        running.until(lambda: running.service.log.kept == 1)
        ask(running, prompt=PROMPT, user="bob")
    assert [each.user_id for each in ChoiceStore(run / FILE).conversations()] == ["ann", "bob"]
