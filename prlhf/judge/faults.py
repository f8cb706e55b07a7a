"""What may become of a request that gets no answer, whatever way the server says so.

A fault is told by an HTTP status, by an error in a body of status 200, by a line of a batch, or by a connection that
fails. All of them become a `Fault`, so that one rule decides what is tried again, and one what a user is told.
"""

from __future__ import annotations

import json
import math
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai

Kind = Literal["status", "page", "empty", "filtered", "timeout", "connection"]
QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
FILTERED = re.compile(
    r"content.?filter|content.?(?:management|policy|moderation)|responsible.?ai|requires moderation|flagged|"
    r"data.?inspection|usage polic|invalid_prompt|sensitive|(?:inappropriate|prohibited|unsafe) content|"
    r"safety (?:system|filter|setting|polic|reason)",
    re.IGNORECASE,
)
BUSY = re.compile(r"rate.?limit|too many requests|overloaded|busy|throttl|capacity|try again", re.IGNORECASE)
NO_KEY = re.compile(
    r"(?:invalid|incorrect|missing|no).{0,20}(?:api.?key|token|credential)|unauthori[sz]ed", re.IGNORECASE
)


class Fault(Exception):
    """A request without an answer.

    `status` is HTTP's, or the one that an error within a reply names; 0 if there is none. `said` is the server's
    message, `text` all that it sent, `headers` in lower case.
    """

    def __init__(
        self,
        said: str,
        status: int = 0,
        kind: Kind = "status",
        code: str = "",
        text: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(said)
        self.said, self.status, self.kind, self.code, self.text = said, status, kind, code, text or said
        self.headers = {key.lower(): value for key, value in (headers or {}).items()}

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later."""
        if self.kind == "status":
            return (self.status in (408, 409, 425, 429) and self.code not in QUOTA) or (
                self.status >= 500 and self.status not in (501, 505)
            )
        return self.kind in ("page", "empty", "timeout") or (self.kind == "connection" and self.code != "tls")

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait."""
        return retry_after(self.headers)


def fault_of(error: BaseException) -> Fault:
    """The fault behind an exception of the client library."""
    if isinstance(error, openai.APITimeoutError):
        return Fault("no answer in time", kind="timeout")
    if isinstance(error, openai.APIStatusError):
        body = _json(error.response.text)
        headers = dict(error.response.headers)
        return error_in(body, error.status_code, headers) or Fault(
            _plain(error.response.text) or error.response.reason_phrase,
            error.status_code,
            text=error.response.text,
            headers=headers,
        )
    found = list(causes(error))
    unsigned = any(isinstance(cause, ssl.SSLError) or "CERTIFICATE" in str(cause) for cause in found)
    return Fault(str(found[-1]) or type(found[-1]).__name__, kind="connection", code="tls" if unsigned else "")


def error_in(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Fault | None:
    """The error that a reply's JSON holds, None if it holds none. A body with another status than 200 is one."""
    if isinstance(body, list) and body:  # Gemini's wraps it
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = _own(body, status)
    if error is None:
        return None
    said, code = _said(error), str(_first(error, "code", "type", "status_code", "statusCode") or "")
    status = status if status != 200 else _status(error, body, said)
    text = json.dumps(body, ensure_ascii=False)
    hidden = status in (200, 400, 403, 422, 451, 500) and FILTERED.search(f"{code} {said}")
    return Fault(said, status, "filtered" if hidden else "status", code, text, headers)


def _own(body: dict[str, Any], status: int) -> dict[str, Any] | None:
    """The part of `body` that tells of an error."""
    error = body.get("error")
    if isinstance(error, dict) and any(error.values()):
        return error
    if error and not isinstance(error, dict):
        return {**body, "message": str(error)}
    if status != 200:
        return body
    if body.get("choices"):
        return None
    base = body.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        return base
    told = body.get("object") == "error" or body.get("success") is False
    return body if told or _first(body, "errors", "detail", "message", "msg") else None


def _said(error: Mapping[str, Any]) -> str:
    """An error's message; what a router's provider said stands beside it."""
    said = _first(error, "message", "msg", "status_msg", "detail", "errors", "error") or error
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    said = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return f"{said}: {raw}" if raw else said


def _status(error: Mapping[str, Any], body: Mapping[str, Any], said: str) -> int:
    """The status that an error of a reply with status 200 names, or that its words mean; else 500."""
    for found in (
        error.get("code"),
        error.get("status"),
        error.get("status_code"),
        body.get("code"),
        body.get("status"),
    ):
        number = str(found)
        if number.isdecimal() and len(number) == 3 and 400 <= int(number) < 600:
            return int(number)
    words = f"{error.get('code')} {error.get('type')} {said}"
    return 401 if NO_KEY.search(words) else 429 if BUSY.search(words) or str(error.get("code")) in QUOTA else 500


def _first(error: Mapping[str, Any], *names: str) -> Any:
    return next((error[name] for name in names if error.get(name)), None)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    """A page's words without its marks."""
    return " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text[:5000], flags=re.DOTALL).split())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from `retry-after-ms` or `Retry-After` (seconds or a date).

    None if it asks for none, or says nothing that can be read. They may be infinite, and are at least 0.
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        return None if math.isnan(seconds) else max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
