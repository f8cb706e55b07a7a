"""Nobody gets another's text, whoever else is served, leaves or fails; and what happens when there is too much."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from running_server import PROMPT, Running, serving

import prlhf
from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError
from prlhf.serve.engine import ServingEngine
from prlhf.serve.run import serve

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.serve import write_run  # noqa: E402

PROMPTS = [f"POST: my {who} {did} {what}.\nTL;DR:" for who, did, what in
           [("boss", "lost", "cars"), ("sister", "hid", "lamps"), ("pilot", "found", "boats and more boats"),
            ("uncle", "broke", "rings"), ("nurse", "sold", "vases")]]  # fmt: skip


async def one_client(
    running: Running, number: int, requests: int, users: list[str], expected: Any, prompts: list[str]
) -> int:
    """Some requests of one client, some of which it leaves in the middle, or which are refused."""
    dice, right = random.Random(number), 0
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=600)
    for _ in range(requests):
        user, prompt, room = dice.choice(users), dice.choice(prompts), dice.choice((1, 5, 16))
        asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "user": user, "temperature": 0, "max_tokens": room}
        kind = dice.choice(("whole", "stream", "stream", "leaves", "bad", "sampled", "several"))
        if kind == "bad":
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(**asked | {"prompt": "word " * 999})
        elif kind == "leaves":
            stream = await client.completions.create(**asked, stream=True)
            async for _chunk in stream:
                break
            await stream.close()
        elif kind == "stream":
            stream = await client.completions.create(**asked, stream=True)
            text = "".join([chunk.choices[0].text async for chunk in stream])
            assert text == expected(user, prompt, room), (user, prompt)
            right += 1
        else:
            more: dict[str, Any] = {"n": 3} if kind == "several" else {}
            more |= {"temperature": 1, "seed": 3} if kind == "sampled" else {}
            found = await client.completions.create(**asked | more)
            wanted = expected(user, prompt, room, kind == "sampled")
            assert {choice.text for choice in found.choices} == {wanted}, (user, prompt)
            right += 1
    return right


def crowd(
    run: Path,
    clients: int,
    requests: int,
    users: list[str],
    expected: Any,
    prompts: list[str] = PROMPTS,
    **settings: Any,
) -> None:
    async def everybody(running: Running) -> int:
        return sum(
            await asyncio.gather(*(one_client(running, i, requests, users, expected, prompts) for i in range(clients)))
        )

    with serving(run, queue=4 * clients, **settings) as running:
        right = asyncio.run(everybody(running))
        running.until(lambda: running.service.engine.writing == running.service.engine.waiting == 0)
        assert right > clients * requests / 2
        assert not running.service.engine._seats._taken
        assert "nan" not in httpx.get(f"{running.url}/metrics").text


@pytest.mark.parametrize("which", ["trained", "gated"])
def test_every_response_is_the_users_own(which: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(which)
    crowd(run, 8, 6, *alone_in(run), batch_size=5)


@pytest.mark.slow
def test_every_response_of_64_clients_is_the_users_own(tiny_base: Path, tmp_path: Path) -> None:
    """Of 64 users, and 50 requests each."""
    run = write_run(tmp_path / "run", str(tiny_base))
    users, expected = alone_in(run)
    for user in users:  # before the clock of any request runs
        for prompt in PROMPTS[:2]:
            expected(user, prompt, 16)
    crowd(run, 64, 50, users, expected, prompts=PROMPTS[:2], timeout=3000)


def test_users_are_read_when_they_ask(tiny_base: Path, tmp_path: Path) -> None:
    """Of 1,500 users, so that their rows are read one by one; the tables of the model hold those who are served."""
    run = write_run(tmp_path / "run", str(tiny_base), users=1500)
    _, expected = alone_in(run)
    with serving(run, batch_size=2, unknown="refuse") as running:
        client = running.client()
        for user in ("user-0", "user-1234", "user-1499", "user-7"):
            asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "user": user, "temperature": 0}
            assert client.completions.create(**asked, max_tokens=16).choices[0].text == expected(user, PROMPT, 16)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="tiny", prompt=PROMPT, user="user-1500")
        assert [one.id for one in client.models.list()] == ["tiny"]
        tables = running.service.policy.model.users.row_tables().values()
        assert {table.weight.shape[0] for table in tables} <= {2, 3}


def alone_in(run: Path) -> tuple[list[str], Any]:
    """The users of a run, and what the library writes for each of them alone."""
    loaded, known = prlhf.load(run, device="cpu"), dict[Any, str]()

    def expected(user: str, prompt: str, room: int, sampled: bool = False) -> str:
        key = (user, prompt, room, sampled)
        if key not in known:
            how: dict[str, Any] = {"temperature": float(sampled), "seed": 3, "max_new_tokens": room}
            known[key] = str(loaded.generate(prompt, user, **how))
        return known[key]

    return [*loaded.users, "generic"], expected


def test_a_client_that_hangs_up_frees_its_place(trained: Path) -> None:
    with serving(trained, batch_size=1, max_tokens=90, queue=2) as running:
        engine = running.service.engine
        long = {"model": "tiny", "prompt": "a", "max_tokens": 90, "logit_bias": None, "seed": 1}
        pause(engine)
        with httpx.stream("POST", f"{running.url}/v1/completions", json=long | {"stream": True}) as stream:
            next(stream.iter_lines())
            running.until(lambda: engine.writing == 1)
            row = engine._loop.active[0]
        running.until(lambda: engine.writing == 0)
        assert len(row.written) < 90
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{running.url}/v1/completions", json=long, timeout=0.3)
        running.until(lambda: engine.writing == engine.waiting == 0)
        engine._turn = type(engine)._turn.__get__(engine)
        assert httpx.post(f"{running.url}/v1/completions", json=long | {"max_tokens": 2}).status_code == 200
        text = httpx.get(f"{running.url}/metrics").text
        assert "prlhf_hung_up_total 2.0" in text


def pause(engine: ServingEngine, seconds: float = 0.02) -> None:
    """Let every token take its time, as with a larger model."""
    turn = engine._turn

    def slow(*arguments: Any) -> None:
        time.sleep(seconds)
        turn(*arguments)

    engine._turn = slow  # type: ignore[method-assign]


def test_a_full_queue_and_a_late_response(trained: Path) -> None:
    with serving(trained, batch_size=1, queue=1, timeout=0.6, max_tokens=90) as running:
        pause(running.service.engine)
        body = {"model": "tiny", "prompt": "a", "max_tokens": 90, "stream": True, "seed": 1}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            with pytest.raises(openai.RateLimitError, match="the queue is full") as caught:
                running.client().completions.create(model="tiny", prompt="a", n=2)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            late = httpx.post(f"{running.url}/v1/completions", json=body | {"stream": False})
            assert late.status_code == 504
            assert late.headers["x-should-retry"] == "false"
            rest = [line for line in lines if line]
        assert "longer than 0.6 seconds" in rest[-1]
        assert running.service.engine.waiting == 0


def test_a_failure_ends_the_responses_at_hand_alone(trained: Path, alone: Callable[..., str]) -> None:
    with serving(trained) as running:
        engine, turn = running.service.engine, running.service.engine._turn
        left = [1]

        def fails(*arguments: Any) -> None:
            turn(*arguments)
            if left:
                left.pop()
                raise RuntimeError("out of memory")

        engine._turn = fails
        asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "user": "ann", "temperature": 0, "max_tokens": 16}
        with pytest.raises(openai.InternalServerError, match="the server failed; see its log"):
            running.client().completions.create(**asked)
        assert running.client().completions.create(**asked).choices[0].text == alone("ann")
        assert not engine._seats._taken


def test_what_cannot_be_served(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match="is not a checkpoint"):
        serve(tmp_path, ServeConfig(port=0, device="cpu"))
    with serving(trained) as running, pytest.raises(PrlhfError, match="cannot listen on"):
        serve(trained, ServeConfig(port=int(running.url.rpartition(":")[2]), device="cpu"))


def test_a_run_that_changes_meanwhile(trained: Path, gated: Path, tmp_path: Path, alone: Callable[..., str]) -> None:
    from prlhf.adapt.forget import forget_user

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with serving(run, unknown="refuse") as running:
        asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 16}
        assert running.client().completions.create(user="bob", **asked).choices[0].text == alone("bob")
        forget_user(run, "bob")
        with pytest.raises(openai.NotFoundError, match="the user 'bob' is not known"):
            running.client().completions.create(user="bob", **asked)
        assert running.client().completions.create(user="cat", **asked).choices[0].text == alone("cat")
        shutil.rmtree(run / "model")
        shutil.copytree(gated / "model", run / "model")
        with pytest.raises(openai.BadRequestError, match="holds another model than the one that is served"):
            running.client().completions.create(user="ann", **asked)


def test_stopping_finishes_what_was_begun(trained: Path, alone: Callable[..., str]) -> None:
    """The command, as a process: it says where it listens, and SIGTERM ends it with its summary."""
    line = [sys.executable, "-m", "prlhf_cli.main", "serve", str(trained), "--port", "0", "--device", "cpu", "--json"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "/v1; Ctrl-C ends it" in line)
        url = next(word for word in said.split() if word.startswith("http")).rstrip(";")
        body = {"prompt": PROMPT, "user": "ann", "temperature": 0, "max_tokens": 16, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert '"tokens": ' in out
    finally:
        process.kill()
        process.wait()
