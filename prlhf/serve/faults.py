"""What a client is answered when something is wrong: an error in OpenAI's shape, with a status."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from prlhf.errors import PrlhfError
from prlhf.model.fitting import TooLong

LOG = logging.getLogger("prlhf.serve")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer with `status`. `param`: the field of the request at fault; `headers`: such as Retry-After."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def overloaded(message: str, seconds: float) -> ApiError:
    """The answer of a server that is full; the client may try again after `seconds`."""
    return ApiError(429, message, "overloaded", retry_after=str(max(1, math.ceil(seconds))))


def timed_out(seconds: float) -> ApiError:
    """The answer to a request that took too long. OpenAI's client would try again, and make it worse."""
    return ApiError(504, f"the request took longer than {seconds:g} seconds", "timeout", x_should_retry="false")


def refused_request(error: PrlhfError) -> ApiError:
    """An error of the library as one of the request."""
    return ApiError(400, str(error), "context_length_exceeded" if isinstance(error, TooLong) else None)


def handle_faults(app: FastAPI) -> None:
    """Let `app` answer every error in this shape."""

    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(PrlhfError)
    async def of_the_library(_: Request, error: PrlhfError) -> JSONResponse:
        return refused_request(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or None
        what = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            return ApiError(400, "the body is not valid JSON").response()
        if where is None and first["type"] in ("model_attributes_type", "missing"):
            what = "send a JSON object, with the header Content-Type: application/json"
        return ApiError(400, f"{where}: {what}" if where else what, param=where).response()

    @app.exception_handler(HTTPException)
    async def of_routing(_: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        LOG.error("a request failed: %s", type(error).__name__)
        return ApiError(500, "the server failed; see its log").response()
