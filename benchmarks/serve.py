"""Tokens per second and time to the first token of `prlhf serve`, for 1, 8 and 32 clients at a time.

    python -m benchmarks.serve                          # the bundled tiny base, with 64 random users
    python -m benchmarks.serve --model FOLDER --json
    python -m benchmarks.serve --url http://127.0.0.1:8080/v1 --name NAME      # another server, without users

Each client sends one request after the other: 64 requests in all, or twice as many as there are clients, each of
another user, with a prompt of 16 to 48 random words of the vocabulary and 64 new greedy tokens, as a stream over HTTP.
The server runs in a process of its own. First one round of all clients is sent and not counted. "one user" repeats the
most clients with requests of one user alone, which is what mixed users cost. Times are medians and 95th percentiles
over requests; tokens per second are those of all clients together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

CLIENTS, USERS, NEW, LOT = (1, 8, 32), 64, 64, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or what `prlhf train --model` takes")
    parser.add_argument("--url", help="measure the server at this address")
    parser.add_argument("--name", default="run", help="the name of its model")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--words", type=int, nargs=2, default=(16, 48), help="of a prompt, at least and at most")
    parser.add_argument("--system", type=int, default=0, help="words that all prompts begin with")
    parser.add_argument("--prefix-cache", default="512", help="of `prlhf serve`, MiB")
    parser.add_argument("--new", type=int, default=NEW, help="tokens per response")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.url:
        found = measure(args.url, args.name, args, personal=False)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(Path(folder) / "run", args.model)
            with served(run, args.prefix_cache) as url:
                found = measure(url, "run", args, personal=True)
    print(json.dumps({"model": args.model, "rows": found}) if args.json else table(found))


# ---- the server ----


def write_run(folder: Path, model: str, users: int = USERS) -> Path:
    """A run on `model` with users whose vectors are random, as if it had been trained."""
    from prlhf.config import TrainConfig
    from prlhf.model.base import resolve_name
    from prlhf.model.checkpoint import build_policy, save_policy

    config = TrainConfig.saved({"model": str(resolve_name(model)), "user_init": "random", "device": "cpu"})
    policy = build_policy(config, [f"user-{number}" for number in range(users)], {})
    (folder / "model").mkdir(parents=True)
    save_policy(policy, folder / "model")
    return folder


@contextmanager
def served(run: Path, prefix_cache: str = "512") -> Iterator[str]:
    """The address of `prlhf serve RUN` in another process."""
    options = ["--port", "0", "--batch-size", "32", "--queue", "128", "--adapt-every", "0"]
    line = [sys.executable, "-m", "prlhf_cli.main", "serve", str(run), *options, "--prefix-cache", prefix_cache]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "/v1" in line)
        yield next(word for word in said.split() if word.startswith("http")).rstrip(";")
    finally:
        process.terminate()
        process.wait()


# ---- the clients ----


def measure(url: str, name: str, args: argparse.Namespace, personal: bool) -> list[dict[str, Any]]:
    """A row for each number of clients, and one for a single user."""
    cases = [(clients, USERS if personal else 0) for clients in args.clients]
    cases += [(max(args.clients), 1)] if personal else []
    most = max(args.clients)
    asyncio.run(clients_at(url, name, most, range(most), cases[0][1], args))
    return [row(url, name, LOT * at, *case, args) for at, case in enumerate(cases, 1)]


def row(url: str, name: str, first: int, clients: int, users: int, args: argparse.Namespace) -> dict[str, Any]:
    """What one case took, whose requests have the numbers from `first` on: no prompt comes twice."""
    count = max(args.requests, 2 * clients)
    began = time.perf_counter()
    found = asyncio.run(clients_at(url, name, clients, range(first, first + count), users, args))
    seconds = time.perf_counter() - began
    return {
        "clients": clients,
        "users": users,
        "requests": count,
        "tokens_per_second": sum(tokens for tokens, _, _ in found) / seconds,
        "first_token": spread([first for _, first, _ in found]),
        "response": spread([whole for _, _, whole in found]),
    }


async def clients_at(
    url: str, name: str, clients: int, requests: range, users: int, args: argparse.Namespace
) -> list[tuple[int, float, float]]:
    """(tokens, seconds to the first text, seconds to the end) of each request."""
    left = list(requests)
    found: list[tuple[int, float, float]] = []

    async def one(client: openai.AsyncOpenAI) -> None:
        while left:
            found.append(await ask(client, name, left.pop(), users, args))

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return found


async def ask(
    client: openai.AsyncOpenAI, name: str, number: int, users: int, args: argparse.Namespace
) -> tuple[int, float, float]:
    """One streamed request."""
    dice = random.Random(number)
    words = "the my post about boats lamps cars and a sister who found sold hid rings on monday".split()
    same = random.Random("system").choices(words, k=args.system)
    prompt = " ".join([*same, *dice.choices(words, k=dice.randint(*args.words))])
    who: dict[str, Any] = {"user": f"user-{number % users}"} if users else {}
    began, first, tokens = time.perf_counter(), 0.0, 0
    stream = await client.completions.create(
        model=name, prompt=prompt, max_tokens=args.new, temperature=0, stream=True,
        stream_options={"include_usage": True}, **who,
    )  # fmt: skip
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].text:
            first = time.perf_counter() - began
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    whole = time.perf_counter() - began
    return tokens, first or whole, whole


def spread(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median": statistics.median(values), "p95": statistics.quantiles(values, n=20, method="inclusive")[-1]}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; times in milliseconds."""
    lines = [
        "| clients | users | tokens/s | first token, median | p95 | response, median | p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        times = [
            f"{1000 * one[kind][part]:.0f} ms" for kind in ("first_token", "response") for part in ("median", "p95")
        ]
        cells = [one["clients"], one["users"] or "none", f"{one['tokens_per_second']:.0f}", *times]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
