"""What a server sends back: an `Answer`, or a `Fault`.

An error may be an HTTP status, an error in a body of status 200, a line of a batch, or a connection that fails. All of
them become a `Fault`, so that one rule decides what is tried again, and another what the user reads.
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

from prlhf.judge.llm.cache import LENGTH, Answer

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
CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length", "max_length", "token_limit"}  # finish reasons
FILTERS = {"content_filter", "safety", "sensitive", "recitation", "prohibited_content", "blocklist", "spii"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")  # keys of a message
MAX_COUNT = 10**12  # larger numbers of tokens are not believed


# ---- faults ----


class Fault(Exception):
    """A request that got no answer."""

    def __init__(
        self,
        message: str,
        status: int = 0,
        kind: Kind = "status",
        code: str = "",
        text: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the server's message, and what else is known.

        Args:
            message: the server's own words.
            status: the HTTP status, or the status that an error in a reply names; 0 if there is none.
            kind: what went wrong.
            code: the server's code of the error.
            text: everything that the server sent; default: `message`.
            headers: of the reply.
        """
        super().__init__(message)
        self.message, self.status, self.kind, self.code, self.text = message, status, kind, code, text or message
        self.headers = {key.lower(): value for key, value in (headers or {}).items()}

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        if self.kind == "status":
            return (self.status in (408, 409, 425, 429) and self.code not in QUOTA) or (
                self.status >= 500 and self.status not in (501, 505)
            )
        return self.kind in ("page", "empty", "timeout") or (self.kind == "connection" and self.code != "tls")

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait; None if it does not say."""
        return retry_after(self.headers)


def fault_of(error: BaseException) -> Fault:
    """The fault behind an exception of the openai package."""
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
    """The error in the JSON of a reply; None if there is none. Every body with a status other than 200 is an error."""
    if isinstance(body, list) and body:  # Gemini's wraps it
        body = body[0]
    if not isinstance(body, dict):
        return None
    error = _error_part(body, status)
    if error is None:
        return None
    message, code = _message(error), str(_first(error, "code", "type", "status_code", "statusCode") or "")
    status = status if status != 200 else _status(error, body, message)
    text = json.dumps(body, ensure_ascii=False)
    filtered = status in (200, 400, 403, 422, 451, 500) and FILTERED.search(f"{code} {message}")
    return Fault(message, status, "filtered" if filtered else "status", code, text, headers)


def _error_part(body: dict[str, Any], status: int) -> dict[str, Any] | None:
    """The part of `body` that describes an error; None if there is none."""
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
    marked = body.get("object") == "error" or body.get("success") is False
    return body if marked or _first(body, "errors", "detail", "message", "msg") else None


def _message(error: Mapping[str, Any]) -> str:
    """The message of an error, with that of a router's provider if there is one."""
    message = _first(error, "message", "msg", "status_msg", "detail", "errors", "error") or error
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    message = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return f"{message}: {raw}" if raw else message


def _status(error: Mapping[str, Any], body: Mapping[str, Any], message: str) -> int:
    """The status that an error in a reply of status 200 names, or that its words mean; else 500."""
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
    words = f"{error.get('code')} {error.get('type')} {message}"
    return 401 if NO_KEY.search(words) else 429 if BUSY.search(words) or str(error.get("code")) in QUOTA else 500


def _first(error: Mapping[str, Any], *names: str) -> Any:
    return next((error[name] for name in names if error.get(name)), None)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    """The text of a web page, without tags."""
    return " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text[:5000], flags=re.DOTALL).split())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, at least 0 and possibly infinite; None if it does not say.

    Read from `retry-after-ms` or `Retry-After` (seconds or a date); values that cannot be read count as missing.
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
    """The error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


# ---- replies ----


def read_reply(content: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
    """The answer in a reply of status 200. Raises Fault if it is an error, or not a chat completion."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        text = " ".join(content[:2000].decode("utf-8", "replace").split())
        raise Fault(f"not JSON but {text[:80]!r}" if text else "an empty body", kind="page", headers=headers) from None
    return read_completion(body, seconds, headers)


def read_completion(body: Any, seconds: float, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer in the JSON of a reply. Raises Fault as `read_reply` does.

    Values of the wrong type are treated as missing, since servers differ from what they document. Of content in parts,
    the text parts count and thoughts do not. A refusal is an answer without text.
    """
    if fault := error_in(body, 200, headers):
        raise fault
    if not isinstance(body, dict):
        raise Fault(f"not a chat completion but {json.dumps(body)[:80]}", kind="page", headers=headers)
    choice = _dict(_list(body.get("choices"))[:1])
    if fault := error_in({"error": choice.get("error")}, 200, headers) if choice.get("error") else None:
        raise fault
    finish = str(choice.get("finish_reason") or "").lower()
    if finish == "error":
        raise Fault("finish_reason is error", 500, headers=headers)
    if finish in FILTERS:
        raise Fault(f"finish_reason is {finish}", kind="filtered", headers=headers)
    message = choice.get("message")
    if not isinstance(message, dict):
        if not isinstance(choice.get("text"), str):
            raise Fault("a reply without choices" if not choice else "a choice without a message", kind="empty")
        message = {"content": choice["text"]}
    usage = _dict([body.get("usage")])
    text = _text(message.get("content"))
    return Answer(
        text=None if text is None else text.encode("utf-8", "replace").decode(),  # half a surrogate pair is not text
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        seconds=round(seconds, 3),
        finish_reason=LENGTH if finish in CUT_OFF else finish or "stop",
        thoughts=any(bool(message.get(name)) for name in THOUGHTS) or _thinks(message.get("content")),
    )


def _text(content: Any) -> str | None:
    """The text of a message's content, which is a text or a list of parts; None if there is no text."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in _list(content)]
    texts = [part for part in parts if part is not None]
    return "".join(texts) if texts else None


def _part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text") or part.get("thought"):
        return None
    text = part.get("text")
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else None


def _thinks(content: Any) -> bool:
    return any(isinstance(part, dict) and _part(part) is None for part in _list(content))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(values: list[Any]) -> dict[str, Any]:
    return values[0] if values and isinstance(values[0], dict) else {}


def _count(value: Any) -> int:
    """A number of tokens; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT else 0
