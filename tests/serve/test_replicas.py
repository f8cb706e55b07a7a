"""What stands before replicas, without Ray: who gets a request, and what is answered when a replica is lost or full."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from running_server import PROMPT, Running, serving
from typer.testing import CliRunner

import prlhf
from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError
from prlhf.serve.front import Front
from prlhf.serve.metrics import together, tokens_told
from prlhf.serve.relay import answered
from prlhf.serve.replicas import build, replica_options, serve_replicas
from prlhf.serve.run import listening, settings
from prlhf_cli.main import app

GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16}


# ---- settings ----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-replicas", "2"], "max_replicas = 2 is not used with replicas = 0"),
        (["--ray-address", "auto"], "ray_address = auto is not used with replicas = 0"),
        (["--replicas", "3", "--max-replicas", "2"], "max_replicas = 2 is less than replicas = 3"),
        (["--replicas", "2", "--host", "0.0.0.0"], "lets other machines speak as any user"),
        (["--replicas", "2"], "is not a checkpoint"),
    ],
)
def test_what_is_refused_before_ray_is_asked(options: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(tmp_path), *options])
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said in line


def test_other_refusals(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrlhfError, match=r"no Ray cluster answers at ray_address = 127\.0\.0\.1:1"):
        serve_replicas(trained, ServeConfig(replicas=2, port=0, device="cpu", ray_address="127.0.0.1:1"))
    with pytest.raises(PrlhfError, match="lets other machines speak as any user"):
        build({"run": str(trained)})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mmh3" else name)
    with pytest.raises(PrlhfError, match=r"replicas need mmh3; pip install .prlhf\[replicas\]."):
        prlhf.serve(trained, replicas=2)


def test_replicas_grow_by_the_queue() -> None:
    fixed = replica_options(ServeConfig(replicas=2, batch_size=4, queue=10))
    assert (fixed["num_replicas"], fixed["max_ongoing_requests"], fixed["max_queued_requests"]) == (2, 14, 28)
    grows = replica_options(ServeConfig(replicas=1, max_replicas=3, batch_size=4))
    assert grows["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4}
    assert "num_replicas" not in grows


# ---- requests ----


class Handle:
    """As a handle of Ray Serve, whose replicas all are the application in this process; or which raises `fails`."""

    def __init__(self, application: Any) -> None:
        self.application, self.sessions = application, list[str | None]()
        self.fails: Exception | None = None
        self.fails_after = 0  # parts that are answered before

    def options(self, stream: bool, session_id: str | None = None) -> Handle:
        assert stream
        self.sessions.append(session_id)
        return self

    @property
    def answer(self) -> Handle:
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Answer:
        return Answer(self._parts(pickle.loads(pickle.dumps(scope)), body))

    async def _parts(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        left = self.fails_after
        async for part in answered(self.application, scope, body, [(b"x-prlhf-replica", b"one")]):
            if self.fails and left == 0:
                raise self.fails
            left -= 1
            yield part


class Answer:
    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._failed: Exception | None = None

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._parts)
        except (ActorDiedError, BackPressureError) as error:
            self._failed = error
            raise

    def cancel(self) -> None:
        if self._failed:
            raise self._failed  # as Ray does
        asyncio.get_running_loop().create_task(self._parts.aclose())


@contextmanager
def fronted(running: Running, **changes: Any) -> Iterator[tuple[str, Handle]]:
    """A front before the service of a server, which goes on."""
    service = running.service
    config = service.config.model_copy(update=changes)
    handle = Handle(running.server.config.app)
    with listening(config) as listener:
        front = Front(handle, None, service.name, config, service.keys)
        server = uvicorn.Server(settings(front.app(), config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            running.until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", handle
        finally:
            server.should_exit = True
            thread.join()


def test_answers_are_those_of_one_server(tiny: Running, alone: Callable[..., str]) -> None:
    with fronted(tiny) as (url, _):
        through = Running(url, tiny.service, tiny.server)
        for user in ("ann", "bob", "generic"):
            asked: dict[str, Any] = {"model": "tiny", "user": user} | GREEDY
            assert through.client().completions.create(**asked).choices[0].text == alone(user)
            stream = through.client().completions.create(**asked, stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream) == alone(user)
        for path in ("/v1/models", "/", "/page.js", "/v1/users/ann", "/v1/nothing"):
            here, there = httpx.get(tiny.url + path), httpx.get(url + path)
            assert (here.status_code, here.text) == (there.status_code, there.text)
            assert {*here.headers} - {*there.headers} == set()
        assert there.headers["x-prlhf-replica"] == "one"
        refused = httpx.post(f"{url}/v1/completions", json=GREEDY | {"prompt_embeds": "x"})
        assert refused.status_code == 400
        assert httpx.get(url, headers={"Host": "elsewhere.example"}).status_code == 403


def test_each_way_to_say_who_asks_leads_to_the_same_replica(tiny: Running) -> None:
    with fronted(tiny) as (url, handle):

        def session(content: str = "", header: str | None = None, **fields: Any) -> str | None:
            headers = {"X-OpenWebUI-User-Id": header} if header else {}
            body: dict[str, Any] = {"content": content} if content else {"json": GREEDY | {"max_tokens": 1} | fields}
            httpx.post(f"{url}/v1/completions", headers=headers, **body)
            return handle.sessions[-1]

        ann, bob = session(user="ann"), session(user="bob")
        assert ann is not None
        assert bob not in (None, ann)
        assert ann == session(safety_identifier="ann") == session(header="ann") == session(model="tiny:ann")
        assert ann == session(model="tiny:bob", header="bob", user="ann")
        assert session('{"user": "\\ud800"}') not in (None, ann, bob)  # half a character
        for anyone in ({}, {"user": "generic"}, {"user": 7}, {"model": "another:ann"}, {"content": "[1"}):
            assert session(**anyone) is None


def test_the_user_of_a_key_has_a_replica(trained: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{sha256(b'of-ann').hexdigest()} ann\n{sha256(b'of-all').hexdigest()} *\n")
    with serving(trained, keys=keys) as running, fronted(running) as (url, handle):
        for key, status in (("of-ann", 200), ("of-all", 200), ("wrong", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(f"{url}/v1/completions", json=GREEDY | {"max_tokens": 1}, headers=headers)
            assert answer.status_code == status
        assert [session is None for session in handle.sessions] == [False, True, True]


def test_a_replica_that_is_lost_or_full(tiny: Running) -> None:
    with fronted(tiny) as (url, handle):
        handle.fails = ActorDiedError()
        for handle.fails_after in (0, 1):
            lost = httpx.post(f"{url}/v1/completions", json=GREEDY)
            assert lost.status_code == 503
            assert int(lost.headers["retry-after"]) >= 1
            assert lost.json()["error"]["code"] == "lost"
        handle.fails_after = 2
        with httpx.stream("POST", f"{url}/v1/completions", json=GREEDY | {"stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line]
        assert stream.status_code == 200
        assert '"code": "lost"' in events[-1]
        assert "[DONE]" not in events[-1]
        handle.fails, handle.fails_after = BackPressureError(9, 9), 0
        full = httpx.post(f"{url}/v1/completions", json=GREEDY)
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        handle.fails = None
        assert httpx.post(f"{url}/v1/completions", json=GREEDY).status_code == 200


def test_limits_before_replicas(tiny: Running) -> None:
    with fronted(tiny, max_body=1, timeout=0.4) as (url, handle):
        large = httpx.post(f"{url}/v1/completions", json=GREEDY | {"prompt": "a" * 2000})
        assert large.status_code == 413
        assert handle.sessions == []
        pause(tiny.service.engine)
        try:
            late = httpx.post(f"{url}/v1/completions", json=GREEDY | {"max_tokens": 90, "seed": 1})
            assert late.status_code == 504
            tiny.until(lambda: tiny.service.engine.writing == 0)  # nobody reads it any more
            with pytest.raises(httpx.TimeoutException):
                httpx.post(f"{url}/v1/completions", json=GREEDY | {"max_tokens": 90}, timeout=0.2)
            tiny.until(lambda: tiny.service.engine.writing == tiny.service.engine.waiting == 0)
        finally:
            del tiny.service.engine._turn


def pause(engine: Any, seconds: float = 0.02) -> None:
    """Let every token take its time, as with a larger model."""
    turn = engine._turn

    def slow(*arguments: Any) -> None:
        time.sleep(seconds)
        turn(*arguments)

    engine._turn = slow


def test_numbers_of_several_replicas_stand_together(tiny: Running) -> None:
    httpx.post(f"{tiny.url}/v1/completions", json=GREEDY)
    text = tiny.service.metrics.text()
    both = together({"one": text, "two": text})
    assert tokens_told(both) == 2 * tiny.service.metrics.written() > 0
    assert both.count(b"# TYPE prlhf_tokens_total counter") == 1
    for line in text.decode().splitlines():
        if line.startswith("prlhf_response_seconds_bucket"):
            assert (
                line.replace("{", '{replica="one",').encode() in both
                or line.replace("}", ',replica="one"}').encode() in both
            )
