"""Calls to a server that speaks OpenAI's chat completions.

Many calls run at once. A busy server is waited for; a request that waiting does not help is reported at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
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

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.judge.answers import Answer
from prlhf.judge.connection import async_client, proxy_of
from prlhf.judge.dialect import Body, Dialect, unknown_model
from prlhf.judge.faults import Fault, fault_of
from prlhf.judge.replies import read_reply
from prlhf.judge.server import Server, duration, refused
from prlhf.progress import SILENT

LONGEST = 60.0  # seconds between two tries, unless the server asks for more
TOLD = 5.0  # seconds from which on a wait is told
CHAT = "/chat/completions"
Got = Callable[[int, Answer | None], None]
Lost = Callable[[int, Fault], bool]


class Client:
    """Asks `concurrency` requests at a time. One `Client` serves one `asyncio.run`.

    `dialect` is what the server is known to take; it grows poorer by what the server refuses.
    """

    def __init__(
        self,
        server: Server,
        config: JudgeConfig,
        dialect: Dialect,
        note: Callable[[str], None] = SILENT.note,
        answered: bool = False,
    ) -> None:
        self._server, self._config, self.dialect, self._note = server, config, dialect, note
        self._pace = Pace(config.requests_per_minute)
        self.answered = answered  # whether any request was, by this client or one before it
        self._told_until = 0.0

    async def ask_all(self, bodies: Sequence[Body], may_ask: Callable[[int], bool], got: Got, lost: Lost) -> None:
        """Ask every body for which `may_ask` holds when its turn comes.

        `got` hears each answer as it comes, and None of a request that has none. `lost` says of a fault whether the
        others go on without that request's answer.

        Raises PrlhfError at the first other fault, after the calls that are under way have ended.
        """
        async with async_client(self._server, self._config.timeout) as client:
            turns = iter(range(len(bodies)))
            errors: list[PrlhfError] = []

            async def work(turns: Iterator[int]) -> None:
                for number in turns:
                    if errors or not may_ask(number):
                        return
                    answer = None
                    try:
                        answer = await self._ask(client, bodies[number])
                        got(number, answer)
                    except (Fault, PrlhfError) as error:  # of the server, or of the disk
                        if answer is None:
                            got(number, None)
                        if isinstance(error, Fault) and lost(number, error):
                            continue
                        errors.append(await self._explained(client, error, bodies[number]))

            if bodies and not self.answered:
                await work(iter([next(turns)]))  # a wrong key or model fails once, not many times
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.concurrency, len(bodies))):
                    group.create_task(work(turns))
            if errors:
                raise errors[0]

    async def _explained(self, client: openai.AsyncOpenAI, error: Fault | PrlhfError, body: Body) -> PrlhfError:
        """The error in words; of an unknown model with the names that the server knows."""
        if isinstance(error, PrlhfError):
            return error
        model = str(body.get("model"))
        known = await models_of(client) if unknown_model(error) else []
        if known and model not in known:
            return PrlhfError(f"{self._server.shown} has no model '{model}'", nearest(model, known))
        proxy = proxy_of(self._server.base_url)
        return refused(self._server, error, self._config.max_wait, proxy.shown if proxy else "")

    async def _ask(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """An answer, after as many tries as are allowed. Raises Fault."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._worth_another_try),
            stop=stop_after_attempt(1 + self._config.retries),
            wait=self._wait,
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
        """One try. What a server refuses by name, it is asked without from then on."""
        while True:
            dialect = self.dialect
            try:
                return await self._send(client, dialect.speak(body))
            except Fault as fault:
                poorer = dialect.after(fault)
                while poorer is not None and poorer.speak(body) == dialect.speak(body):
                    poorer = poorer.after(fault)  # what is refused was left out before: something else of the kind
                if self.dialect == dialect and poorer is None:
                    raise
                if self.dialect == dialect and poorer is not None:
                    self._learn(poorer)

    async def _guess(self, client: openai.AsyncOpenAI, body: Body, fault: Fault) -> Answer:
        """Where nothing was ever answered, and the refusal names nothing: leave out one part, each in turn."""
        for guess in [] if self.answered else self.dialect.guesses(fault):
            if guess.speak(body) == self.dialect.speak(body):
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
        self.dialect = dialect
        self._note(f"{self._server.shown} does not take {dialect.describe()}: requests leave that out from now on")

    async def _send(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        began = time.monotonic()
        try:
            reply = await client.post(CHAT, cast_to=httpx2.Response, body=body)
        except openai.OpenAIError as error:
            raise fault_of(error) from None
        answer = read_reply(reply.content, dict(reply.headers), time.monotonic() - began)
        self.answered = True
        return replace(answer, text=answer.text and self._server.redact_answer(answer.text))

    def _wait(self, state: RetryCallState) -> float:
        """Seconds to the next try: what the server asks for, else growing with jitter. All other calls wait, too."""
        usual = (wait_exponential(self._config.backoff, LONGEST) + wait_random(0, self._config.backoff))(state)
        fault = state.outcome.exception() if state.outcome else None
        assert isinstance(fault, Fault)
        seconds = fault.retry_after or usual
        if fault.retry_after:
            self._pace.pause(seconds)
        now = time.monotonic()
        if seconds >= TOLD and now + seconds > self._told_until + 1:
            self._told_until = now + seconds
            asked = " as it asks" if fault.retry_after else ""
            said = self._server.redact(fault.said)[:100]
            self._note(
                f"{self._server.shown} ({fault.status or fault.kind}: {said}): waiting {duration(seconds)}{asked}"
            )
        return seconds


async def models_of(client: openai.AsyncOpenAI) -> list[str]:
    """The models that a server lists; none where it has no list."""
    try:
        reply = await client.get("/models", cast_to=httpx2.Response)
        listed = reply.json()["data"]
        return [str(one["id"]) for one in listed]
    except (openai.OpenAIError, ValueError, KeyError, TypeError, RecursionError):
        return []


def run_to_end(task: Coroutine[Any, Any, None]) -> None:
    """Run `task`; in a thread of its own where a loop runs already, as in a notebook."""
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
    """At most so many calls a minute, and none while the server wants to be left alone."""

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
