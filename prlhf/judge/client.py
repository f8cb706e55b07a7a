"""Calls to a server that speaks OpenAI's chat completions.

Many calls run at once. A busy server is waited for; a request that waiting does not help is reported at once.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.judge.answers import Answer
from prlhf.judge.server import Server, causes, refused

LONGEST = 60.0  # seconds between two tries, unless the server asks for more
OPTIONAL = ("response_format", "temperature", "seed")  # not every server, or model, takes these
Body = dict[str, Any]


class Client:
    """Asks `concurrency` requests at a time. One `Client` serves one `asyncio.run`."""

    def __init__(self, server: Server, config: JudgeConfig) -> None:
        self._server, self._config = server, config
        self._left_out: set[str] = set()  # of OPTIONAL, what the server has said that it does not take
        self._pace = Pace(config.requests_per_minute)

    async def ask_all(
        self, bodies: Sequence[Body], may_ask: Callable[[int], bool], got: Callable[[int, Answer | None], None]
    ) -> None:
        """Ask every body for which `may_ask` holds when its turn comes; `got` hears each answer as it comes.

        Raises PrlhfError at the first request that cannot be mended, after the calls that are under way have ended.
        """
        options: dict[str, Any] = {"timeout": self._config.timeout, "max_retries": 0}
        key = self._server.key or "none"
        async with openai.AsyncOpenAI(base_url=self._server.base_url, api_key=key, **options) as client:
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
                    except PrlhfError as error:  # of the server, or of the disk
                        errors.append(error)
                        if answer is None:
                            got(number, None)

            if bodies:
                await work(iter([next(turns)]))  # a wrong key or model fails once, not many times
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._config.concurrency, len(bodies))):
                    group.create_task(work(turns))
            if errors:
                raise errors[0]

    async def _ask(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        retrying = AsyncRetrying(
            retry=retry_if_exception(passing),
            stop=stop_after_attempt(1 + self._config.retries),
            wait=self._wait,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await self._pace.turn()
                    return await self._call(client, body)
        except openai.NotFoundError as error:
            known = await models_of(client)
            model = body["model"]
            if not known or model in known:
                raise refused(self._server, error) from None
            raise PrlhfError(f"{self._server.shown} has no model '{model}'", nearest(model, known)) from None
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise refused(self._server, error) from None
        raise AssertionError("unreachable")

    async def _call(self, client: openai.AsyncOpenAI, body: Body) -> Answer:
        """One try. What a server refuses of OPTIONAL, by name, it is asked without from then on."""
        began = time.monotonic()
        while True:
            taken = {key: value for key, value in body.items() if key not in self._left_out}
            try:
                reply = await client.chat.completions.create(**taken)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused_now = {key for key in OPTIONAL if key in taken and key in str(error).lower()}
                if not refused_now:
                    raise
                self._left_out |= refused_now
            else:
                return read_reply(reply, time.monotonic() - began)

    def _wait(self, state: RetryCallState) -> float:
        """Seconds to the next try: what the server asks for, else growing with jitter. All other calls wait, too."""
        usual = wait_exponential_jitter(initial=self._config.backoff, max=LONGEST, jitter=self._config.backoff)(state)
        error = state.outcome.exception() if state.outcome else None
        asked = retry_after(error.response.headers) if isinstance(error, openai.APIStatusError) else None
        if asked is not None:
            self._pace.pause(asked)
        return asked if asked is not None else usual


async def models_of(client: openai.AsyncOpenAI) -> list[str]:
    """The models that a server lists; none where it has no list."""
    try:
        return [one.id for one in (await client.models.list()).data or []]
    except (openai.OpenAIError, json.JSONDecodeError, AttributeError):
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


def read_reply(reply: Any, seconds: float) -> Answer:
    """A chat completion as an `Answer`; no choice, no content and a refusal are answers without text."""
    return read_completion(reply.model_dump(warnings=False) if hasattr(reply, "model_dump") else {}, seconds)


def read_completion(reply: Mapping[str, Any], seconds: float) -> Answer:
    """The same of its JSON. Servers differ from what they promise: what is of another kind is as good as not there."""
    choice = (reply.get("choices") or [{}])[0] or {}
    content, usage = (choice.get("message") or {}).get("content"), reply.get("usage") or {}

    def count(name: str) -> int:
        value = usage.get(name)
        return value if isinstance(value, int) else 0

    return Answer(
        text=content.encode("utf-8", "replace").decode() if isinstance(content, str) else None,  # half an emoji
        prompt_tokens=count("prompt_tokens"),
        completion_tokens=count("completion_tokens"),
        seconds=round(seconds, 3),
        finish_reason=str(choice.get("finish_reason") or "empty"),
    )


def passing(error: BaseException) -> bool:
    """Whether the same request may well succeed later."""
    if isinstance(error, openai.APIStatusError):
        quota = isinstance(error, openai.RateLimitError) and error.code == "insufficient_quota"
        return (error.status_code in (408, 409, 429) and not quota) or error.status_code >= 500
    if isinstance(error, openai.APIConnectionError):  # timeouts are of this kind, too
        return not any(isinstance(cause, ssl.SSLError) or "CERTIFICATE" in str(cause) for cause in causes(error))
    return isinstance(error, json.JSONDecodeError | openai.APIResponseValidationError)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from `retry-after-ms` or `Retry-After` (seconds or a date)."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError):
        return None
