"""Reading a file of prompts to generate from: any table that `prlhf.source` reads, or text, a prompt a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.dataset import Text
from prlhf.errors import PrlhfError, nearest
from prlhf.source.files import BINARY, file_rows, form, local_path
from prlhf.source.formats import Raw
from prlhf.source.streams import MARK, read_all

ROW = 'give rows like {"prompt": "…"}, or a text file with a prompt a line'


def read_prompts(path: Path, column: str = "prompt") -> list[Text]:
    """The prompts of a table's `column`, of a JSON list of prompts, or the lines of a text file.

    Raises PrlhfError for a file that cannot be read, and for the first row without a prompt.
    """
    path = local_path(str(path))
    if not path.exists():
        raise PrlhfError(f"no prompts at {path}", "give a file, or `eval`, `own` or `judging`")
    if form(path):
        return [_prompt(raw, column) for raw in file_rows([path]).rows]
    try:
        content = read_all(path).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise PrlhfError(f"cannot read prompts {path}: {error}", "give JSONL, CSV, parquet or text") from error
    if path.suffix.lower() in BINARY or "\0" in content:
        raise PrlhfError(f"cannot read prompts {path}: it is not text", "give JSONL, CSV, parquet or text")
    return [line for line in (line.rstrip("\r").lstrip(MARK) for line in content.split("\n")) if line.strip()]


def _prompt(raw: Raw, column: str) -> Text:
    if raw.problem:
        raise PrlhfError(f"{raw.location}: {raw.problem}", ROW)
    value = raw.value
    if isinstance(value, Mapping):
        if column not in value:
            names = [str(name) for name in value]
            other = names[0] if len(names) == 1 else "NAME"
            found = nearest(column, names) if names else "it has none"
            raise PrlhfError(
                f"{raw.location}: no prompt, column '{column}' is missing ({found})",
                f"name the column: --prompt-column {other}",
            )
        value = value[column]
    if problem := _not_a_prompt(value):
        raise PrlhfError(f"{raw.location}: no prompt, {problem}", ROW)
    return value if isinstance(value, str) else [message for message in value if _says_something(message)]


def _not_a_prompt(value: Any) -> str:
    """Why a value is neither text nor messages; "" where it is one of them."""
    said = [value] if isinstance(value, str) else [m.get("content") for m in _messages(value)]
    if not said:
        return "it should be text, or a list of messages with role and content"
    if isinstance(value, str) and not value.strip():
        return "it is empty"
    if not isinstance(value, str) and not any(_says_something(message) for message in value):
        return "it is empty"
    try:
        for one in said:
            str(one).encode()
    except UnicodeEncodeError:  # JSON can say "\ud800", which no tokenizer takes
        return "it holds half a surrogate pair, which is not Unicode text"
    return ""


def _messages(value: Any) -> list[dict[str, Any]]:
    """The messages of a list of them; [] for anything else."""
    if not isinstance(value, list):
        return []
    good = all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    return value if good else []


def _says_something(message: Mapping[str, Any]) -> bool:
    """Converted data have system messages of "", which chat templates would still write a header for."""
    return message["role"] != "system" or bool(message["content"].strip())
