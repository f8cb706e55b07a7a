"""What stands before replicas: it sends each request to the replica of its user, and its answer back.

The replica of a user who asks again has their rows at hand, and what it computed of their last prompts. Who asks
decides here only where a request goes: whether it is allowed is decided there.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from prlhf.config import ServeConfig
from prlhf.dataset import GENERIC
from prlhf.serve.app import unless_gone
from prlhf.serve.faults import ApiError, handle_faults, overloaded, timed_out
from prlhf.serve.guard import too_large
from prlhf.serve.keys import Caller, caller_of
from prlhf.serve.metrics import together
from prlhf.serve.protocol import Ask
from prlhf.serve.who import named_user
from prlhf.serve.writing import event

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
OF_SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
NUMBERS = 10.0  # seconds for all replicas to say their numbers


class Front:
    """Answers requests by `replicas`, a handle of Ray Serve whose router keeps to a session.

    `keeper`: the handle of what keeps choices. `name`, `config`, `keys`: as the replicas have them.
    """

    def __init__(
        self, replicas: Any, keeper: Any, name: str, config: ServeConfig, keys: Mapping[str, Caller] | None
    ) -> None:
        self._replicas, self._keeper, self._name, self._config, self._keys = replicas, keeper, name, config, keys

    def app(self) -> FastAPI:
        """The application in which `answer` answers every path."""
        app = FastAPI(title="prlhf", docs_url=None, redoc_url=None, openapi_url=None)
        handle_faults(app)
        app.add_api_route("/{path:path}", self.answer, methods=METHODS, response_model=None)
        return app

    async def answer(self, request: Request) -> Response:
        """The answer of a replica; 503 if that one is lost before it has answered.

        Raises:
            ApiError: nobody can answer, or not in time.
        """
        body = await body_of(request, self._config.max_body * 1024)
        session = self.session(request.headers, body)
        handle = self._replicas.options(stream=True, **({"session_id": session} if session else {}))
        answer = handle.answer.remote({key: request.scope.get(key) for key in OF_SCOPE}, body)
        found = None
        try:
            found = await unless_gone(asyncio.wait_for(_begun(answer), self._config.timeout), request)
        except TimeoutError:
            raise timed_out(self._config.timeout) from None
        finally:
            if found is None:
                cancel(answer)
        if found is not None and found.status_code == 200 and request.url.path == "/metrics":
            return Response(await self.numbers(), media_type="text/plain; version=0.0.4")
        return found or Response(status_code=499)

    def session(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """What stands for the user whose replica answers; None, any replica: nobody is named, or the generic user."""
        fields: Any = None
        with suppress(ValueError, RecursionError):
            fields = json.loads(body)
        fields = fields if isinstance(fields, dict) else {}
        texts = {key: value for key, value in fields.items() if isinstance(value, str)}
        user = None
        with suppress(ApiError):
            asked: dict[str, Any] = {key: texts.get(key) for key in ("model", "user", "safety_identifier")}
            ask = Ask.model_construct(**asked)
            user = named_user(ask, headers, self._config, self._name)
        caller = caller_of(headers.get("authorization"), self._keys)
        user = user or (caller.only if caller else None)
        return None if user in (None, GENERIC) else sha256(user.encode(errors="replace")).hexdigest()

    async def numbers(self) -> bytes:
        """The numbers of all that answer, in Prometheus' text format, each with the label `replica`."""
        asked = self._replicas.broadcast("numbers"), self._keeper.broadcast("numbers")
        told = [await each.results_async(timeout_s=NUMBERS, return_exceptions=True) for each in asked]
        return together(dict(one for each in told for one in each if isinstance(one, tuple)))


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request. Raises ApiError if it has more than `most` bytes."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise too_large(most)
    return bytes(found)


async def _begun(answer: Any) -> Response:
    """The whole answer, or a stream whose head is there."""
    with faults():
        head = await anext(answer)
        headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in head["headers"]}
        if "text/event-stream" in headers.get("content-type", ""):
            return StreamingResponse(_streamed(answer), head["status"], headers)
        return Response(b"".join([part async for part in answer]), head["status"], headers)


async def _streamed(answer: Any) -> AsyncIterator[bytes]:
    """Yield the rest of a stream. The loss of the replica is an event of it."""
    try:
        with faults():
            async for part in answer:
                yield part
    except ApiError as error:
        yield event(error.body()).encode()
    finally:
        cancel(answer)


def cancel(answer: Any) -> None:
    """Let the replica end an answer that nobody reads. What Ray refused or lost is raised by it once more."""
    of_ray, of_serve = importlib.import_module("ray.exceptions"), importlib.import_module("ray.serve.exceptions")
    with suppress(of_ray.RayError, of_serve.RayServeException):
        answer.cancel()


@contextmanager
def faults() -> Iterator[None]:
    """Turn what Ray says of lost and full replicas into answers, and of what was cancelled into asyncio's word."""
    of_ray, of_serve = importlib.import_module("ray.exceptions"), importlib.import_module("ray.serve.exceptions")
    try:
        yield
    except of_serve.RequestCancelledError:
        raise asyncio.CancelledError from None
    except of_serve.BackPressureError:
        raise overloaded("all replicas are full; try again later", 1) from None
    except (of_ray.RayActorError, of_serve.DeploymentUnavailableError):
        raise ApiError(503, "the replica of this request was lost; try again", "lost", retry_after="1") from None
