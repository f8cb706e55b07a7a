"""Small raw data sets, written out in full where a test depends on their content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import Prepared, read_prepared

WriteLines = Callable[..., Path]


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """write_lines("a/b.jsonl", row, row, ...): writes rows as JSON, strings and bytes unchanged."""

    def write(name: str, *lines: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
        path.write_bytes(b"\n".join(raw) + b"\n")
        return path

    return write


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """A custom row, changed by keywords; the value `...` removes a column."""

    def make(**changes: Any) -> dict[str, Any]:
        base = {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea.", "user_id": "ann"}
        return {key: value for key, value in (base | changes).items() if value is not ...}

    return make


@pytest.fixture
def tldr_row() -> Callable[..., dict[str, Any]]:
    """A raw TL;DR row; `texts` and `policies` are pairs, `info` is merged, other keywords replace columns."""

    def make(
        texts: tuple[Any, Any] = (" the long one", " short"),
        policies: tuple[Any, Any] = ("sup1", "sup4"),
        info: dict[str, Any] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        base = {
            "info": {
                "id": "t3_1",
                "post": "My post.",
                "title": "A title",
                "subreddit": "tifu",
                "site": None,
                "article": None,
            }
            | (info or {}),
            "summaries": [{"text": t, "policy": p, "note": None} for t, p in zip(texts, policies, strict=True)],
            "choice": 0,
            "worker": "w1",
            "batch": "batch1",
            "split": "train",
            "extra": {"confidence": None},
        }
        return {key: value for key, value in (base | changes).items() if value is not ...}

    return make


@pytest.fixture
def prism_prep(tmp_path: Path) -> Callable[..., Any]:
    def run(source: Path, **options: Any) -> Prepared:
        prepare(PrepConfig(dataset="prism", source=str(source), out=tmp_path / "out", **options))
        return read_prepared(tmp_path / "out")

    return run


@pytest.fixture
def prism_folder(write_lines: Any) -> Callable[..., Any]:
    """prism_folder([survey rows], [conversations]); a survey row may be only an id."""

    def make(survey: list[Any], talks: list[Any]) -> Path:
        write_lines("raw/survey.jsonl", *({"user_id": row} if isinstance(row, str) else row for row in survey))
        return write_lines("raw/conversations.jsonl", *talks).parent

    return make
