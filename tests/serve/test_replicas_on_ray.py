"""Two replicas on a local Ray, by the command: who gets which request, what a kill costs, and what is learned once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from running_server import PROMPT

import prlhf

pytestmark = pytest.mark.slow
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 16}


@dataclass
class Command:
    """`prlhf serve --replicas`, running."""

    url: str
    run: Path
    process: subprocess.Popen[str]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=120)

    def text(self, user: str) -> str:
        return str(self.post("completions", user=user, **GREEDY).json()["choices"][0]["text"])

    def replica_of(self, user: str) -> str:
        return self.post("completions", user=user, **GREEDY | {"max_tokens": 1}).headers["x-prlhf-replica"]

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas that are there."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in found if ":Replica" in " ".join(one.cmdline()) and "__init__" not in one.cmdline()[0]]

    def process_of(self, name: str) -> psutil.Process:
        """The process of the replica `name`, by its log."""
        return next(one for one in self.replicas() if any(name in file.path for file in one.open_files()))

    def until(self, holds: Callable[[], bool], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.5)


@contextmanager
def served(run: Path, *options: str) -> Iterator[Command]:
    words = [sys.executable, "-m", "prlhf_cli.main", "serve", str(run), "--port", "0", "--device", "cpu", "--json"]
    # Ray gives workers the lowest priority, which they would not get on a busy machine
    env = os.environ | {"RAY_worker_niceness": "0"}
    process = subprocess.Popen(
        [*words, "--name", "tiny", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    errors: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            errors.append(line)
            if "/v1, by" in line:
                break
        else:
            raise AssertionError("".join(errors))
        url = next(word for word in line.split() if word.startswith("http")).removesuffix("/v1,")
        said_later = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
        said_later.start()
        yield Command(url, run, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=400) == 0, errors
        assert process.stdout is not None
        assert '"tokens": ' in process.stdout.read()
        assert "Traceback" not in "".join(errors)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def two(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("replicas") / "run"))
    with served(run, "--replicas", "2", "--batch-size", "8", "--queue", "8", "--adapt-every", "3") as command:
        yield command


def test_answers_are_those_of_one_process_and_a_user_has_one_replica(two: Command, alone: Callable[..., str]) -> None:
    for user in ("ann", "bob", "cat", "generic"):
        assert two.text(user) == alone(user)
    users = [f"user-{number}" for number in range(12)]
    by_user = {user: {two.replica_of(user) for _ in range(3)} for user in users}
    assert {len(replicas) for replicas in by_user.values()} == {1}
    assert len(set.union(*by_user.values())) == 2
    numbers = httpx.get(f"{two.url}/metrics", timeout=60).text
    assert len([line for line in numbers.splitlines() if line.startswith("prlhf_tokens_total")]) == 2


def test_a_user_is_learned_once_and_every_replica_knows(two: Command) -> None:
    before = two.text("dan")
    for number in range(3):
        told = two.post(
            "feedback", user="dan", prompt=PROMPT, chosen=f" my boss lost cars {number}.", rejected=" cars."
        )
        assert told.json()["choices"] == number + 1
    known: dict[str, Any] = {}

    def learned() -> bool:
        known.update(httpx.get(f"{two.url}/v1/users/dan", timeout=60).json())
        return known["learned"] == 3 and not known["learning"]

    two.until(learned)
    assert known["version"] == 1
    assert [version["version"] for version in known["versions"]] == [1]
    wanted = prlhf.load(two.run, device="cpu").generate(PROMPT, "dan", temperature=0.0, max_new_tokens=16)
    assert wanted != before
    assert two.text("dan") == wanted
    home = two.replica_of("dan")
    two.process_of(home).kill()
    two.until(lambda: two.post("completions", user="dan", **GREEDY).status_code == 200)
    assert two.replica_of("dan") != home
    assert two.text("dan") == wanted
    assert two.post("users/rollback", user="dan").json()["version"] == 0
    assert two.text("dan") == before


async def one_client(
    url: str, number: int, over: asyncio.Event, statuses: Counter[int], chosen: dict[str, int]
) -> None:
    """Choices and completions in turn; `chosen`: the status of each choice."""
    async with httpx.AsyncClient(timeout=120) as client:
        count = 0
        while not over.is_set():
            count += 1
            name = f" {number}-{count}."
            if count % 2:
                body: dict[str, Any] = {"prompt": PROMPT, "user": f"user{name}", "chosen": name, "rejected": " cars."}
                status = (await client.post(f"{url}/v1/feedback", json=body)).status_code
                chosen[name] = status
            else:
                answer = await client.post(f"{url}/v1/completions", json=GREEDY | {"user": f"user{name}"})
                status = answer.status_code
                assert status == 200 or int(answer.headers["retry-after"]) >= 1
            statuses[status] += 1


def test_a_replica_that_is_killed_under_load_loses_what_it_had_in_hand_alone(two: Command) -> None:
    two.until(lambda: len(two.replicas()) == 2 and len({two.replica_of(f"user-{n}") for n in range(12)}) == 2)
    statuses, chosen, clients = Counter[int](), dict[str, int](), 24

    async def everybody() -> None:
        over = asyncio.Event()
        tasks = [asyncio.create_task(one_client(two.url, n, over, statuses, chosen)) for n in range(clients)]

        async def reached(count: int) -> None:
            while statuses[200] < count:
                for task in tasks:
                    assert not task.done() or task.result()
                await asyncio.sleep(0.1)

        await reached(100)
        two.replicas()[0].kill()
        await reached(statuses[200] + 200)
        over.set()
        await asyncio.gather(*tasks)

    asyncio.run(asyncio.wait_for(everybody(), 300))
    assert set(statuses) <= {200, 429, 503}
    assert 0 < statuses[503] <= clients
    with sqlite3.connect(two.run / "feedback.sqlite") as database:
        kept = Counter(text for (text,) in database.execute("SELECT chosen FROM choices WHERE user_id LIKE 'user %'"))
    accepted = {name for name, status in chosen.items() if status == 200}
    assert accepted <= set(kept)
    assert {chosen[name] for name in set(kept) - accepted} <= {503}  # kept, and the answer was lost
    assert set(kept.values()) == {1}


def test_replicas_are_added_while_requests_wait(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    names = set[str]()
    with served(run, "--replicas", "1", "--max-replicas", "2", "--batch-size", "1") as one:

        async def client(number: int) -> None:
            async with httpx.AsyncClient(timeout=120) as asks:
                while len(names) < 2:
                    body = GREEDY | {"user": f"user-{number}", "max_tokens": 90}
                    names.add((await asks.post(f"{one.url}/v1/completions", json=body)).headers["x-prlhf-replica"])

        async def everybody() -> None:
            await asyncio.gather(*(client(number) for number in range(8)))

        asyncio.run(asyncio.wait_for(everybody(), 400))


BUILT = """
import os, sys, ray, httpx2
from ray import serve
from prlhf.serve.replicas import build

run, keys, port = sys.argv[1:]
ray.init(address="local", include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, proxy_location="HeadOnly")
args = {"run": run, "keys": keys, "device": "cpu", "name": "tiny", "max_body": 4}
serve.run(build(args), name="prlhf", route_prefix="/")
body = {"prompt": "POST: my boss lost cars.\\nTL;DR:", "user": "ann", "temperature": 0, "max_tokens": 16}
for key, more in (("of-ann", {}), ("wrong", {}), ("of-ann", {"user": "bob"}), ("of-ann", {"prompt": "a" * 9000})):
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx2.post(f"http://127.0.0.1:{port}/v1/completions", json=body | more, headers=headers, timeout=60)
    print(answer.status_code, repr(answer.json().get("choices", [{}])[0].get("text")), sep=":")
serve.delete("prlhf")
"""


def test_the_application_of_a_config_file_behind_rays_proxies(
    trained: Path, tmp_path: Path, alone: Callable[..., str]
) -> None:
    """As the manifest for Kubernetes names it."""
    run, keys = Path(shutil.copytree(trained, tmp_path / "run")), tmp_path / "keys.txt"
    keys.write_text(f"{sha256(b'of-ann').hexdigest()} ann\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "-c", BUILT, str(run), str(keys), str(port)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env, timeout=400)
    answers = [line.split(":", 1) for line in done.stdout.splitlines() if line[:3].isdigit()]
    assert [status for status, _ in answers] == ["200", "401", "403", "413"], done.stderr
    assert answers[0][1] == repr(alone("ann"))
