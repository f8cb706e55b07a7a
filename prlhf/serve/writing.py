"""The responses to one request while the engine writes them, as its client reads them: whole, or as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from prlhf.serve.engine import Closed, Full, ServingEngine, WrittenPiece
from prlhf.serve.faults import ApiError, overloaded, timed_out
from prlhf.serve.metrics import Metrics
from prlhf.serve.planning import Planned
from prlhf.serve.shapes import ApiShape, Partial, reused

DONE = "data: [DONE]\n\n"


class Writing:
    """The jobs of a request, submitted to `engine`. Whoever makes one has to close it."""

    def __init__(
        self,
        engine: ServingEngine,
        planned: Planned,
        timeout: float,
        metrics: Metrics,
        keep: Callable[[Sequence[Partial]], None] | None = None,
    ) -> None:
        """`keep` is called at the end with what was written. Raises ApiError if the engine is full or closed."""
        self._keep = keep
        self._engine, self._planned, self._timeout, self._metrics = engine, planned, timeout, metrics
        self._began = time.monotonic()
        self._pieces: asyncio.Queue[tuple[int, WrittenPiece]] = asyncio.Queue()
        self.choices = [Partial() for _ in planned.jobs]
        loop = asyncio.get_running_loop()
        for at, job in enumerate(planned.jobs):
            job.deliver = partial(_hand_over, loop, self._pieces, at)
        try:
            engine.submit(planned.jobs)
        except Full:
            raise overloaded("the queue is full; try again later", 1 + engine.waiting / 8) from None
        except Closed:
            raise ApiError(503, "the server is about to stop", "stopping", retry_after="5") from None
        metrics.prompt_tokens.inc(sum(planned.prompts))

    async def pieces(self) -> AsyncIterator[tuple[int, WrittenPiece]]:
        """Yield (number of the response, piece) until all have ended; `choices` grow by them.

        Raises:
            ApiError: the engine failed, or the time is over.
        """
        left = len(self.choices)
        while left:
            rest = self._began + self._timeout - time.monotonic()
            try:
                at, piece = await asyncio.wait_for(self._pieces.get(), max(rest, 0))
            except TimeoutError:
                raise timed_out(self._timeout) from None
            if not any(choice.text for choice in self.choices) and piece.text:
                self._metrics.first.observe(time.monotonic() - self._began)
            self._grow(self.choices[at], piece)
            left -= piece.finish is not None
            yield at, piece

    def close(self) -> None:
        """Stop writing what has not ended, and count and keep what was written."""
        unfinished = [
            job for job, choice in zip(self._planned.jobs, self.choices, strict=True) if choice.finish is None
        ]
        self._engine.drop(unfinished)
        self._metrics.tokens.inc(sum(choice.tokens for choice in self.choices))
        self._metrics.reused.inc(reused(self.choices, self._planned.prompts))
        self._metrics.whole.observe(time.monotonic() - self._began)
        if self._keep:
            self._keep(self.choices)

    async def whole(self, shape: ApiShape) -> dict[str, Any]:
        """The answer, when all responses have ended."""
        async for _ in self.pieces():
            pass
        return shape.whole(self.choices, self._planned.prompts)

    async def stream(self, shape: ApiShape, with_usage: bool) -> AsyncIterator[str]:
        """Yield the events of a stream. An error after its begin is an event too.

        With the numbers of tokens at its end, all others say that they have none yet, as OpenAI's do.
        """
        no_usage = {"usage": None} if with_usage else {}
        try:
            for at in range(len(self.choices)):
                if (first := shape.first(at)) is not None:
                    yield event(first | no_usage)
            async for at, piece in self.pieces():
                yield event(shape.chunk(at, piece.text, piece.scored, piece.finish) | no_usage)
            if with_usage:
                yield event(shape.last(self.choices, self._planned.prompts))
            yield DONE
        except ApiError as error:
            yield event(error.body())
        finally:
            if any(choice.finish is None for choice in self.choices):
                self._metrics.hung_up.inc()
            self.close()

    def _grow(self, choice: Partial, piece: WrittenPiece) -> None:
        if piece.finish == "error":
            raise ApiError(500, "the server failed; see its log")
        choice.text += piece.text
        choice.scored += piece.scored
        choice.finish = piece.finish
        choice.tokens, choice.reused = piece.tokens or choice.tokens, piece.reused or choice.reused


def _hand_over(
    loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[tuple[int, WrittenPiece]], at: int, piece: WrittenPiece
) -> None:
    loop.call_soon_threadsafe(pieces.put_nowait, (at, piece))


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
