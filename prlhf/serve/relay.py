"""An answer of an ASGI application as a generator, so that another process can read it part by part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

RUNNING: set[asyncio.Task[None]] = set()  # the event loop itself keeps no tasks


async def answered(
    app: Any, scope: dict[str, Any], body: bytes, more: Sequence[tuple[bytes, bytes]] = ()
) -> AsyncGenerator[Any, None]:
    """Yield the head of an answer of `app`, a dict of `status` and `headers` with `more`; then its body, in parts.

    Whoever stops reading has hung up, as the application sees it.
    """
    sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    gone, parts = asyncio.Event(), [body]

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        with suppress(Exception):  # it was answered with 500 and logged
            await app(scope, receive, sent.put)
        sent.put_nowait(None)

    task = asyncio.create_task(run())
    RUNNING.add(task)
    task.add_done_callback(RUNNING.discard)
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                yield {"status": message["status"], "headers": [*message["headers"], *more]}
            elif message.get("body"):
                yield message["body"]
    finally:
        gone.set()
