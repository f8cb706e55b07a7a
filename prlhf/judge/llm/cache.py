"""The cache of answers: a JSON line per answer, written when it arrives and found by the hash of the whole request."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prlhf.errors import PrlhfError, one_line

LENGTH = "length"  # `finish_reason` of an answer that was cut off at its limit of tokens
NO_ANSWER = {"empty", "error", "content_filter"}  # `finish_reason` of lines of prlhf 0.1 that hold no answer


@dataclass(frozen=True)
class Answer:
    """A server's answer to one request."""

    text: str | None  # None: a refusal, or thoughts only
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str = ""
    thoughts: bool | None = None  # whether there were any beside the text; None in older lines

    @property
    def cut(self) -> bool:
        """Whether it was cut off at its limit of tokens."""
        return self.finish_reason == LENGTH


class _Line(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    request: str = Field(min_length=1)
    text: str | None
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    seconds: float
    finish_reason: str = ""
    thoughts: bool | None = None


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    """A hash of a request's address and body, 32 hex digits. It names the answer, so it must never change."""
    return hashlib.sha256(json.dumps([base_url, body], sort_keys=True).encode()).hexdigest()[:32]


class AnswerCache:
    """The answers in the file `path`. Damaged lines are ignored, so their requests are sent again.

    `trouble` is why the file cannot be used, or empty; answers are then kept in memory only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        self.trouble = ""
        content = b""
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            self.trouble = one_line(error)
        for line in content.split(b"\n"):
            if answer := _answer(line):
                self.known[answer[0]] = answer[1]
        self._whole = not content or content.endswith(b"\n")

    def check(self) -> str:
        """Try to write to the file; returns why it is not possible, or an empty text."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as error:
            self.trouble = one_line(error)
        return self.trouble

    def add(self, key: str, answer: Answer, keep: bool = True) -> None:
        """Store an answer in the file before this returns; in memory only without `keep`, or if there is `trouble`."""
        if keep and not self.trouble:
            line = json.dumps({"request": key, **asdict(answer)}, ensure_ascii=False) + "\n"
            try:
                self._write(line if self._whole else "\n" + line)
            except OSError as error:
                hint = "free some space, or set PRLHF_CACHE to another folder"
                raise PrlhfError(f"cannot keep answers in {self.path}: {one_line(error)}", hint) from error
            self._whole = True
        self.known[key] = answer

    def _write(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _answer(line: bytes) -> tuple[str, Answer] | None:
    """The request's key and the answer; None if the line is damaged or holds what prlhf 0.1 mistook for an answer."""
    if not line.strip():
        return None
    try:
        row = _Line.model_validate_json(line)
    except ValidationError:
        return None
    odd = row.text is None and row.thoughts is None and row.finish_reason != LENGTH
    if odd or row.finish_reason in NO_ANSWER:
        return None
    return row.request, Answer(**row.model_dump(exclude={"request"}))
