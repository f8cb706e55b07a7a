"""Prompts and responses of files, as text or as lists of {role, content} messages.

These forms are also read: ShareGPT's `from` and `value`, content in parts, and lists written as JSON text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from prlhf.dataset import Message, Text
from prlhf.source.values import Malformed, any_text, column, mapping, text

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "ai": "assistant",
}  # fmt: skip


def text_or_messages(value: Any, name: str, strict: bool = True) -> Text:
    """Return `value` as text or as a list of {role, content} messages, without empty system messages.

    Args:
        value: the raw value.
        name: the name of the value, for messages.
        strict: refuse unknown roles and blank messages, and drop other keys of messages.

    Raises:
        Malformed: the value is neither text nor messages, is empty, or is refused by `strict`.
    """
    if isinstance(value, str):
        value = _listed(value, name)
    if isinstance(value, Mapping) and {"role", "content"} <= set(value):
        value = [value]  # a single message without a list
    if not isinstance(value, list):
        return text(value, name)
    found = [message for one in value if (message := _message(mapping(one, f"a message of '{name}'"), name, strict))]
    if not found:
        raise Malformed(f"'{name}' is empty")
    return found


def _message(message: Mapping[str, Any], name: str, strict: bool) -> Message | None:
    """The message as {role, content}; None for an empty system message."""
    shared_gpt = "from" in message and "role" not in message
    role_key, content_key = ("from", "value") if shared_gpt else ("role", "content")
    said = text(column(message, role_key), f"{name}.{role_key}")
    role = ROLES.get(said.strip().lower(), "" if strict else said)
    if not role:
        raise Malformed(f"'{name}' has a turn with the role '{said}', which is not user, assistant or system")
    content = column(message, content_key)
    if isinstance(content, list):
        content = _joined(content, f"{name}.{content_key}")
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return None
    if message.get("tool_calls") and not content:
        raise Malformed(f"'{name}' has a turn that calls a tool and says nothing")
    others = {} if strict else {key: one for key, one in message.items() if key not in (role_key, content_key)}
    return {"role": role, "content": (text if strict else any_text)(content, f"{name}.{content_key}"), **others}


def _joined(parts: list[Any], name: str) -> str:
    """The text of content that is a list of parts, as in requests to servers."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        one = mapping(part, f"a part of '{name}'")
        if one.get("type", "text") != "text" or not isinstance(one.get("text"), str):
            raise Malformed(f"'{name}' has a part of type {one.get('type')!r}: only text is read")
        texts.append(one["text"])
    return "".join(texts)


def _listed(value: str, name: str) -> Any:
    """Parse a list of messages that was written as text, as in CSV files; other text is returned unchanged."""
    if not _LISTED.match(value):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if _is_messages(found) else value
    if _MESSAGE.search(value):
        raise Malformed(f"'{name}' is a list of messages as text that is not JSON", "write it with json.dumps")
    return value


_LISTED = re.compile(r"\s*\[\s*\{")
_MESSAGE = re.compile(r"""^\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def _is_messages(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return isinstance(value, list) and all(isinstance(m, dict) and any(k <= set(m) for k in keys) for m in value)
