"""Calls to a server that offers OpenAI's chat completions.

Many calls run at once. If the server is busy, the client waits and tries again; a request that waiting does not help is
reported at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2
import openai
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from prlhf.errors import PrlhfError, nearest
from prlhf.judge.llm.cache import Answer
from prlhf.judge.llm.dialect import Body, Dialect, unknown_model
from prlhf.judge.llm.replies import Fault, fault_of, read_reply
from prlhf.judge.llm.requests import Request, Session
from prlhf.judge.llm.server import async_client, duration, proxy_of, refused
from prlhf.progress import Progress

MAX_PAUSE = 60.0  # seconds between two tries, unless the server asks for more
REPORTED_PAUSE = 5.0  # seconds; longer pauses are reported
CHAT = "/chat/completions"


def send_all(session: Session, requests: Sequence[Request], progress: Progress) -> None:
    """Send `requests`, `concurrency` at a time and within the budget, and store the answers in the cache.

    Raises PrlhfError at the first fault that concerns all requests, after the calls under way have ended.
    """
    _run(Client(session, progress).send_all(requests))


class Client:
    """The calls of one `send_all`."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self._exchange, self._progress = session, progress
        self._server, self._config = session.server, session.config
        self._pace = Pace(self._config.requests_per_minute)
        self._reported_until = 0.0

    async def send_all(self, requests: Sequence[Request]) -> None:
        """See the function of this name."""
        async with async_client(self._server, self._config.timeout) as client:
            queue = iter(requests)
            errors: list[PrlhfError] = []

            async def work(queue: Iterator[Request]) -> None:
                for request in queue:
                    if errors or not self._exchange.take(request):
                        return
                    try:
                        await self._answer(client, request)
                    except PrlhfError as error:
                        errors.append(error)

            if requests and not self._exchange.answered:
                await work(iter([next(queue)]))  # a wrong key or model fails once, not many times
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.concurrency, len(requests))):
                    group.create_task(work(queue))
            if errors:
                raise errors[0]

    async def _answer(self, client: openai.AsyncOpenAI, request: Request) -> None:
        """Send a request and store its answer. Raises PrlhfError if the other requests must not be sent."""
        try:
            answer = await self._ask(client, request.body)
        except Fault as fault:
            self._exchange.settle(request, None)
            if not self._exchange.give_up(request, fault):
                raise await self._error(client, fault, request.body) from None
            return
        self._exchange.settle(request, answer)
        self._exchange.keep(request, answer)
        advance(self._exchange, self._progress, 0 if request.calls > 1 else 1)

    async def _error(self, client: openai.AsyncOpenAI, fault: Fault, body: Body) -> PrlhfError:
        """The error for `fault`; if the model is unknown, with the names that the server lists."""
        model = str(body.get("model"))
        known = await models_of(client) if unknown_model(fault) else []
        if known and model not in known:
            return PrlhfError(f"{self._server.shown} has no model '{model}'", nearest(model, known))
        proxy = proxy_of(self._server.base_url)
        return refused(self._server, fault, self._config.max_wait, proxy.shown if proxy else "")

    async def _ask(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """The answer, after at most `retries` more tries. Raises Fault."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._worth_another_try),
            stop=stop_after_attempt(1 + self._config.retries),
            wait=self._pause,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await self._pace.turn()
                    return await self._call(client, body)
        except Fault as fault:
            return await self._guess(client, body, fault)
        raise AssertionError("unreachable")

    def _worth_another_try(self, error: BaseException) -> bool:
        return isinstance(error, Fault) and error.passing and (error.retry_after or 0.0) <= self._config.max_wait

    async def _call(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """One try. If the server refuses a parameter by name, this and all later requests leave it out."""
        while True:
            dialect = self._exchange.dialect
            try:
                return await self._send(client, dialect.speak(body))
            except Fault as fault:
                poorer = dialect.after(fault)
                while poorer is not None and poorer.speak(body) == dialect.speak(body):
                    poorer = poorer.after(fault)  # the request did not have that parameter: something similar is meant
                if self._exchange.dialect == dialect and poorer is None:
                    raise
                if self._exchange.dialect == dialect and poorer is not None:
                    self._learn(poorer)

    async def _guess(self, client: openai.AsyncOpenAI, body: Body, fault: Fault) -> Answer:
        """If nothing was ever answered and the refusal names nothing: try without one part, then without another."""
        for guess in [] if self._exchange.answered else self._exchange.dialect.guesses(fault):
            if guess.speak(body) == self._exchange.dialect.speak(body):
                continue
            try:
                answer = await self._send(client, guess.speak(body))
            except Fault as other:
                if other.status in (401, 402, 403, 429) or other.kind in ("connection", "timeout"):
                    break
                continue
            self._learn(guess)
            return answer
        raise fault

    def _learn(self, dialect: Dialect) -> None:
        self._exchange.dialect = dialect
        self._progress.note(
            f"{self._server.shown} does not accept {dialect.describe()}: further requests leave that out"
        )

    async def _send(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        began = time.monotonic()
        try:
            reply = await client.post(CHAT, cast_to=httpx2.Response, body=body)
        except openai.OpenAIError as error:
            raise fault_of(error) from None
        answer = read_reply(reply.content, dict(reply.headers), time.monotonic() - began)
        self._exchange.answered = True
        return replace(answer, text=answer.text and self._server.redact_answer(answer.text))

    def _pause(self, state: RetryCallState) -> float:
        """Seconds to the next try: what the server asks for, which holds for all calls, or growing with jitter."""
        usual = (wait_exponential(self._config.backoff, MAX_PAUSE) + wait_random(0, self._config.backoff))(state)
        fault = state.outcome.exception() if state.outcome else None
        assert isinstance(fault, Fault)
        seconds = fault.retry_after or usual
        if fault.retry_after:
            self._pace.pause(seconds)
        now = time.monotonic()
        if seconds >= REPORTED_PAUSE and now + seconds > self._reported_until + 1:
            self._reported_until = now + seconds
            as_asked = " as it asks" if fault.retry_after else ""
            why = f"{fault.status or fault.kind}: {self._server.redact(fault.message)[:100]}"
            self._progress.note(f"{self._server.shown} ({why}): waiting {duration(seconds)}{as_asked}")
        return seconds


def advance(session: Session, progress: Progress, count: int) -> None:
    """Advance the progress by `count` calls, and show the cost so far if the price is known."""
    progress.advance(count, **({"cost $": session.budget.spent} if session.price else {}))


async def models_of(client: openai.AsyncOpenAI) -> list[str]:
    """The models that a server lists; empty if it has no such list."""
    try:
        reply = await client.get("/models", cast_to=httpx2.Response)
        listed = reply.json()["data"]
        return [str(one["id"]) for one in listed]
    except (openai.OpenAIError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _run(task: Coroutine[Any, Any, None]) -> None:
    """Run `task`, in a thread of its own if an event loop is running already, as in a notebook."""
    try:
        running = bool(asyncio.get_running_loop())
    except RuntimeError:
        running = False
    if running:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, task).result()
    else:
        asyncio.run(task)


class Pace:
    """Limits the number of calls per minute, and starts none while the server asks to wait."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    def pause(self, seconds: float) -> None:
        """Start no call for `seconds`."""
        self._next = max(self._next, time.monotonic() + seconds)

    async def turn(self) -> None:
        """Wait until the next call may start."""
        wait = self._next - time.monotonic()
        self._next = max(self._next, time.monotonic()) + self._gap
        if wait > 0:
            await asyncio.sleep(wait)
