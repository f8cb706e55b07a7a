"""Answers that were paid for, kept: a JSON line each, written as it comes, found again by the whole request."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prlhf.atomic import full_disk_named


@dataclass(frozen=True)
class Answer:
    """What a server said to one request. `text` is None for a refusal or an empty choice."""

    text: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str = ""


def key_of(base_url: str, body: Mapping[str, Any]) -> str:
    """A request's name: the hash of everything in it and of where it goes."""
    return hashlib.sha256(json.dumps([base_url, body], sort_keys=True).encode()).hexdigest()[:32]


class Answers:
    """The answers in `path`, old and new. A line that a crash cut off is left out, and its request is asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        with full_disk_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
                key = row.pop("request")
                answer = Answer(**row)
                if answer.text is None or isinstance(answer.text, str):
                    self.known[key] = answer
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        self._whole = not content or content.endswith(b"\n")

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer, on disk before this returns."""
        line = json.dumps({"request": key, **asdict(answer)}, ensure_ascii=False) + "\n"
        with full_disk_named(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line if self._whole else "\n" + line)
            file.flush()
            os.fsync(file.fileno())
        self._whole = True
        self.known[key] = answer
