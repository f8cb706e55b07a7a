"""Answers that were paid for, kept: a JSON line each, written as it comes, found again by the whole request."""

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

LENGTH = "length"  # `finish_reason` of an answer that was cut off at the tokens it was allowed


@dataclass(frozen=True)
class Answer:
    """What a server said to one request. `text` is None for a refusal, or where there are thoughts only.

    `thoughts`: whether there were any beside the text; None in answers that were kept before this was looked at.
    """

    text: str | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str = ""
    thoughts: bool | None = None

    @property
    def cut(self) -> bool:
        """Whether it was cut off at the tokens it was allowed."""
        return self.finish_reason == LENGTH


class Line(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    request: str = Field(min_length=1)
    text: str | None
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    seconds: float
    finish_reason: str = ""
    thoughts: bool | None = None


NO_ANSWER = {"empty", "error", "content_filter"}  # what prlhf 0.1 kept of replies that were none


def key_of(base_url: str, body: Mapping[str, Any]) -> str:
    """A request's name: the hash of everything in it and of where it goes."""
    return hashlib.sha256(json.dumps([base_url, body], sort_keys=True).encode()).hexdigest()[:32]


class Answers:
    """The answers in `path`, old and new. A line that is damaged is left out, and its request is asked again.

    `trouble` says why answers cannot be kept, if they cannot: they are then known to this run only.
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
        """Why answers cannot be kept; empty if they can."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass
        except OSError as error:
            self.trouble = one_line(error)
        return self.trouble

    def add(self, key: str, answer: Answer, keep: bool = True) -> None:
        """Keep an answer, on disk before this returns; without `keep`, and with `trouble`, for this run only."""
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
    """A line's request and answer; None where it is damaged, or holds what earlier versions took for an answer."""
    if not line.strip():
        return None
    try:
        row = Line.model_validate_json(line)
    except ValidationError:
        return None
    odd = row.text is None and row.thoughts is None and row.finish_reason != LENGTH
    if odd or row.finish_reason in NO_ANSWER:
        return None
    return row.request, Answer(**row.model_dump(exclude={"request"}))
