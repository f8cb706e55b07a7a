"""What happens to a request before anything reads it: its host, its size, and the count of its answer."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

from prlhf.serve.faults import ApiError
from prlhf.serve.keys import is_loopback
from prlhf.serve.metrics import Metrics

Scope = dict[str, Any]
SAFE = [  # the page needs nothing from elsewhere, and nobody may put it into a page of theirs
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Wraps the application `app`. Written for ASGI itself: a client that hangs up is noticed by whoever waits for it.

    `local`: whether only names of this machine are answered, so that a page from elsewhere, whose name was made to
    mean this machine, reaches nothing.
    """

    def __init__(self, app: Any, most_bytes: int, local: bool, metrics: Metrics) -> None:
        self._app, self._most, self._local, self._metrics = app, most_bytes, local, metrics

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        read = 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, too_large(self._most).message)
            return message

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SAFE]
                self._metrics.requests.labels(route_of(scope), str(message["status"])).inc()
            await send(message)

        host = headers.get(b"host", b"").decode("latin-1")
        if self._local and not is_loopback(host_name(host)):
            await ApiError(403, f"host '{host}' is not this machine").response()(scope, receive, answer)
        elif int(headers.get(b"content-length", b"0") or 0) > self._most:
            await too_large(self._most).response()(scope, receive, answer)
        else:
            await self._app(scope, counted, answer)


def too_large(most: int) -> ApiError:
    """The answer to a body of more than `most` bytes."""
    return ApiError(413, f"the body is larger than {most // 1024} KiB", "body_too_large")


def host_name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]


def route_of(scope: Scope) -> str:
    """The route of a request, so that made-up paths are not counted one by one."""
    route = scope.get("route")
    return str(route.path) if route is not None else "other"
