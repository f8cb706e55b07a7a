"""From a server's reply to an answer, or to the fault that it tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prlhf.judge.answers import LENGTH, Answer
from prlhf.judge.faults import Fault, error_in

LENGTHS = {"length", "max_tokens", "max_output_tokens", "model_length", "max_length", "token_limit"}
FILTERS = {"content_filter", "safety", "sensitive", "recitation", "prohibited_content", "blocklist", "spii"}
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
COUNT = 10**12  # tokens that no reply has


def read_reply(content: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
    """The reply of status 200 as an `Answer`. Raises Fault where it is an error, or not a chat completion at all."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        text = " ".join(content[:2000].decode("utf-8", "replace").split())
        raise Fault(f"not JSON but {text[:80]!r}" if text else "an empty body", kind="page", headers=headers) from None
    return read_completion(body, seconds, headers)


def read_completion(body: Any, seconds: float, headers: Mapping[str, str] | None = None) -> Answer:
    """The same of its JSON. Servers differ from what they promise: values of another type are treated as missing.

    The text of an answer has the parts that are text, and none that are thoughts. A refusal is an answer without text.
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
        text=None if text is None else text.encode("utf-8", "replace").decode(),  # half an emoji
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        seconds=round(seconds, 3),
        finish_reason=LENGTH if finish in LENGTHS else finish or "stop",
        thoughts=any(bool(message.get(name)) for name in THOUGHTS) or _thinks(message.get("content")),
    )


def _text(content: Any) -> str | None:
    """Content is a text, or a list of parts of which the text parts count."""
    if isinstance(content, str):
        return content
    parts = [_part(part) for part in _list(content)]
    said = [part for part in parts if part is not None]
    return "".join(said) if said else None


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
    """Tokens, 0 for what is not a number of them."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < COUNT else 0
