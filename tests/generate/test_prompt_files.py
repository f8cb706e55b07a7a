"""Files of prompts as people have them, read before anything is loaded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prlhf.errors import PrlhfError
from prlhf.generate.pairs import read_prompts

TALK = [{"role": "user", "content": "Why?"}]
FILES: dict[str, tuple[bytes, list[Any]]] = {
    "marked.txt": ("Why?\r\n\r\nHow?\r\n".encode("utf-8-sig"), ["Why?", "How?"]),
    "utf16.txt": ("Why?\r\nHow?\r\n".encode("utf-16"), ["Why?", "How?"]),
    "no ending": (b"Why?\nHow?", ["Why?", "How?"]),
    "a.txt.gz": (gzip.compress(b"Why?\n"), ["Why?"]),
    "marked.jsonl": ('{"prompt": "Why?"}\n'.encode("utf-8-sig"), ["Why?"]),
    "table.csv": (b'id,prompt\r\n1,"Why, then?"\r\n', ["Why, then?"]),
    "table.tsv": (b"id\tprompt\n1\tWhy?\n", ["Why?"]),
    "list.json": (b'[\n  {"prompt": "Why?"}\n]', ["Why?"]),
    "texts.json": (b'["Why?", "How?"]', ["Why?", "How?"]),
    "texts.jsonl": (b'"Why?"\n"How?"\n', ["Why?", "How?"]),
    "talks.jsonl": (json.dumps({"prompt": [{"role": "system", "content": ""}, *TALK]}).encode(), [TALK]),
    "roles.jsonl": (
        json.dumps({"prompt": [{"from": "human", "value": "Why?"}]}).encode()
        + b"\n"
        + json.dumps({"prompt": [{"role": "User", "content": ["Wh", {"type": "text", "text": "y?"}]}]}).encode(),
        [TALK, TALK],
    ),
    "talks.csv": (b'prompt\n"[{""role"": ""user"", ""content"": ""Why?""}]"\n', [TALK]),
    "tool.jsonl": (
        b'{"prompt": [{"role": "tool", "content": "", "id": 7}]}',
        [[{"role": "tool", "content": "", "id": 7}]],
    ),
    "keys.jsonl": (
        b'{"prompt": [{"role": "user", "content": "x", "name": "y"}]}',
        [[{"role": "user", "content": "x", "name": "y"}]],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_prompts(name: str, tmp_path: Path) -> None:
    content, prompts = FILES[name]
    (tmp_path / name).write_bytes(content)
    assert read_prompts(tmp_path / name) == prompts


BAD = {
    "half.jsonl": (b'{"prompt": "\\ud83d"}', r"half.jsonl:1: no prompt, 'prompt' holds half a surrogate pair"),
    "half talk.jsonl": (
        b'{"prompt": [{"role": "user", "content": "\\ud83d"}]}',
        r":1: no prompt, 'prompt.content' holds half",
    ),
    "other.csv": (
        b"question\nWhy?\n",
        r":2: no prompt, column 'prompt' is missing .*--prompt-column question",
    ),
    "picture.jsonl": (
        b'{"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        r":1: no prompt, 'prompt.content' has a part of type 'image_url': only text is read",
    ),
    "sheet.xlsx": (b"PK\x03\x04", r"is not text"),
    "zeros.txt": (b"a\nb\0c", r"is not text"),
    "latin.txt": (b"a\xe9", r"cannot read prompts"),
    "cells.csv": (b"id,prompt\n1,a,b\n", r"cells.csv:2: it has 3 cells"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_row_without_a_prompt_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrlhfError, match=message):
        read_prompts(tmp_path / name)


def test_another_column_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("question\nWhy?\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_prompts(Path("~/a.csv"), "question") == ["Why?"]
