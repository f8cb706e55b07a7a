"""Responses, one row per (prompt, user): a JSONL file, a parquet file, or a folder of shards in either format.

`generate` writes them and `judge` reads them. A folder holds `part-00000.parquet` (or `.jsonl`) and so on, and a
`manifest.json` with the number of shards; if there are fewer, the run that writes them has not finished.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from prlhf.dataset import MESSAGES, Text, prompt_id
from prlhf.errors import PrlhfError, one_line
from prlhf.parse import json_value
from prlhf.source.formats import file_rows, form, local_path
from prlhf.source.raw import Cells, Raw
from prlhf.source.streams import read_all, readable

HOW_TO_MAKE = "make one with `prlhf generate`"
MANIFEST = "manifest.json"
# Defaults for rows written by hand. Index 0: the user is taken to be unseen in training.
BY_HAND = {"user_index": 0, "prompt_tokens": 0, "response_tokens": 0, "finish_reason": "stop", "settings": {}}

Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]  # stored in 32 bits in parquet


@dataclass(frozen=True)
class Response:
    """One response. Tokens are those of the policy; `settings` are the settings of decoding."""

    prompt_id: str
    user_id: str  # `generic` for the generic user
    user_index: Count  # 0: generic, or unseen in training
    prompt: Text
    response: str
    prompt_tokens: Count
    response_tokens: Count
    finish_reason: Literal["stop", "length"]  # `length`: cut off at the token limit
    settings: dict[str, Any]
    reward: float | None = None  # of the response chosen by best-of-n


class _About(BaseModel):
    """The checked part of the manifest of a folder of shards."""

    shards: Count
    format: Literal["jsonl", "parquet"]
    settings: dict[str, Any]


_ROW, _ABOUT = TypeAdapter(Response), TypeAdapter(_About)


def words(text: str) -> int:
    """Count words: parts separated by blanks, and the letters of scripts that are written without blanks.

    It is the unit of Figure 3. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan have no blanks between words,
    so each of their letters counts as a word, with its combining marks; punctuation does not count. A word of another
    script between them counts as one.
    """
    if text.isascii():
        return len(text.split())
    rest, letters = _letters_without_blanks().subn(" ", text)
    return int(letters) + sum(not (letters and _is_punctuation(part)) for part in rest.split())


@cache
def _letters_without_blanks() -> Any:
    import regex  # unlike `re`, it knows the script of a letter

    scripts = "".join(rf"\p{{scx={name}}}" for name in ("Han", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"))
    return regex.compile(rf"(?V1)[[{scripts}]&&\p{{L}}]\p{{M}}*")


def _is_punctuation(part: str) -> bool:
    """Whether a part between such letters consists of punctuation only."""
    return all(unicodedata.category(character).startswith("P") for character in part)


# ---- writing ----


def to_line(row: Response) -> str:
    """Return one row as a line of a JSONL file, with its newline."""
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Sequence[Response], form: Literal["jsonl", "parquet"]) -> None:
    """Write a file of rows in the format `form`."""
    if form == "jsonl":
        path.write_text("".join(map(to_line, rows)), encoding="utf-8")
    else:
        pq.write_table(to_table(rows), path)


def to_table(rows: Sequence[Response]) -> pa.Table:
    """Return the rows as a table; `settings` is JSON text, prompts are text or lists of messages.

    Raises:
        PrlhfError: the prompts do not fit into one column; see `prompt_type`.
    """
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("user_id", pa.string()),
            ("user_index", pa.int32()),
            ("prompt", prompt_type(row.prompt for row in rows)),
            ("response", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("response_tokens", pa.int32()),
            ("finish_reason", pa.string()),
            ("settings", pa.string()),
            ("reward", pa.float64()),
        ]
    )
    columns = [asdict(row) | {"settings": json.dumps(row.settings, ensure_ascii=False)} for row in rows]
    return pa.Table.from_pylist(columns, schema=schema)


def prompt_type(prompts: Iterable[Text]) -> pa.DataType:
    """Return the type of a parquet column for `prompts`.

    Raises:
        PrlhfError: a column cannot store them without loss.
    """
    keys = {None if isinstance(prompt, str) else tuple(sorted({k for m in prompt for k in m})) for prompt in prompts}
    if keys <= {None}:
        return pa.string()
    if keys == {("content", "role")}:
        return MESSAGES
    why = "some are text, some conversations" if None in keys else "their messages hold more than role and content"
    raise PrlhfError(f"these prompts do not fit a parquet column: {why}", "write JSONL: --out NAME.jsonl")


# ---- reading ----


@overload
def read_responses(path: Path, partial: Literal[False] = False) -> list[Response]: ...


@overload
def read_responses(path: Path, partial: Literal[True]) -> tuple[list[Response], int]: ...


def read_responses(path: Path, partial: bool = False) -> list[Response] | tuple[list[Response], int]:
    """Read and check responses.

    Args:
        path: a folder of shards, or a file in any format that `prlhf.source` reads. Rows written by hand need only
            `prompt`, `user_id` and `response`.
        partial: read the JSONL file of a killed run. A last line without a newline is ignored.

    Returns:
        The rows. If `partial`, also the number of bytes of complete lines: truncate the file there and append.

    Raises:
        PrlhfError: the file cannot be read, a row is refused or repeats another, or the folder is not complete.
    """
    if partial:
        content = _read_bytes(path)
        whole = content.rfind(b"\n") + 1
        rows = _read_lines(content[:whole], path)
        _refuse_duplicates(rows)
        return [row for _, row in rows], whole
    path = local_path(str(path))
    rows = [row for file in (_shards_of(path) if path.is_dir() else [path]) for row in _read_file(file)]
    _refuse_duplicates(rows)
    if not rows:
        raise PrlhfError(f"{path} is empty", HOW_TO_MAKE)
    return [row for _, row in rows]


Placed = tuple[str, Response]  # (location for messages, row)


def _read_file(path: Path) -> list[Placed]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix != ".jsonl" and form(path) and path.exists():
        return [_from_table(raw) for raw in file_rows([path]).rows]
    return _read_lines(_read_text(path), path)


def _from_table(raw: Raw) -> Placed:
    if raw.problem:
        raise PrlhfError(f"{raw.location}: {raw.problem}", HOW_TO_MAKE)
    try:
        row = _from_cells(raw.value) if isinstance(raw.value, Cells) else raw.value
        return raw.location, parse_line(json.dumps(row), raw.location)
    except (TypeError, ValueError) as error:
        raise PrlhfError(f"{raw.location}: {one_line(error)}", HOW_TO_MAKE) from error


def _from_cells(row: Cells) -> dict[str, Any]:
    """Parse numbers, settings and conversations in a row of text; an empty cell counts as missing."""
    numbers: dict[str, Callable[[str], Any]] = {
        "user_index": int,
        "prompt_tokens": int,
        "response_tokens": int,
        "reward": float,
        "settings": json.loads,
    }
    found = {
        name: numbers[name](cell) if name in numbers else cell
        for name, cell in row.items()
        if cell or name == "response"
    }
    if str(found.get("prompt", "")).lstrip().startswith("[{"):
        found["prompt"] = json.loads(str(found["prompt"]))
    return found


def _read_lines(content: bytes, path: Path) -> list[Placed]:
    lines = content.split(b"\n")  # not splitlines, which also splits at U+2028 and the like
    if lines[-1] == b"":
        lines.pop()
    return [(f"{path}:{number}", parse_line(line, f"{path}:{number}")) for number, line in enumerate(lines, start=1)]


def _read_parquet(path: Path) -> list[Placed]:
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would import pyarrow.dataset, and with it pandas
            rows = file.read().to_pylist()
        for row in rows:
            row["settings"] = json.loads(row.get("settings") or "null")
        lines = [json.dumps(row).encode() for row in rows]
    except FileNotFoundError as error:
        raise PrlhfError(f"no responses at {path}", HOW_TO_MAKE) from error
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        raise PrlhfError(f"cannot read {path}: {one_line(error)}", HOW_TO_MAKE) from error
    return [(f"{path}:{number}", parse_line(line, f"{path}:{number}")) for number, line in enumerate(lines, start=1)]


def has_our_columns(path: Path) -> bool:
    """Return whether a parquet file has the columns that `to_table` writes."""
    try:
        with pq.ParquetFile(path) as file:
            return set(to_table([]).column_names) - {"reward"} <= set(file.schema_arrow.names)
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return False


def read_shards_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of shards: `shards` (their number), `format`, `settings` and more.

    Raises:
        PrlhfError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        about: dict[str, Any] = json_value(path.read_bytes())
        _ABOUT.validate_python(about)
    except FileNotFoundError as error:
        raise PrlhfError(f"cannot read {folder}: it is a folder without {MANIFEST}", HOW_TO_MAKE) from error
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "remove the folder and generate again") from error
    return about


def shard_name(number: int, form: str) -> str:
    """Return the file name of a shard, such as `part-00012.parquet`."""
    return f"part-{number:05d}.{form}"


def _shards_of(folder: Path) -> list[Path]:
    about = read_shards_manifest(folder)
    named = sorted(path for path in folder.glob(f"part-*.{about['format']}") if path.is_file())
    paths = [folder / shard_name(number, about["format"]) for number in range(min(about["shards"], len(named)))]
    there = len(set(named) & set(paths))
    if there < about["shards"]:
        why = f"{folder} is not finished: {there} of {about['shards']} shards are there"
        raise PrlhfError(why, "run `prlhf generate` again to go on")
    return paths


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PrlhfError(f"no responses at {path}", HOW_TO_MAKE) from error
    except OSError as error:
        raise PrlhfError(f"cannot read {path}: {error.strerror}", "name a responses.jsonl") from error


def _read_text(path: Path) -> bytes:
    """Read the file as UTF-8; another program may have used another encoding."""
    with readable(path):
        return read_all(path) if path.is_file() else _read_bytes(path)


def parse_line(line: str | bytes, where: str) -> Response:
    """Parse a row. `where`: the location of the line, for messages.

    Raises:
        PrlhfError: the line is not JSON, lacks a key, or has a value of another type.
    """
    try:
        return _ROW.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "missing" and first["loc"][0] in (*BY_HAND, "prompt_id"):
        return parse_line(_completed(first["input"]), where)
    if first["type"] == "json_invalid":
        raise PrlhfError(
            f"{where} is not JSON, or cut off: {first['ctx']['error']}", "generate again to finish the file"
        )
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        raise PrlhfError(f"{where} has no '{key}'", HOW_TO_MAKE)
    if not key:
        raise PrlhfError(f"{where} is not a JSON object", HOW_TO_MAKE)
    why = first["msg"].removeprefix("Input ")
    raise PrlhfError(f"{where}: {key} = {_short(first['input'])} is refused: it {why}", HOW_TO_MAKE)


def _completed(row: dict[str, Any]) -> str:
    """Add the defaults to a row that was written by hand."""
    return json.dumps(BY_HAND | {"prompt_id": prompt_id(row["prompt"]) if row.get("prompt") else ""} | row)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _refuse_duplicates(rows: list[Placed]) -> None:
    first: dict[tuple[str, str], str] = {}
    for where, row in rows:
        earlier = first.setdefault((row.prompt_id, row.user_id), where)
        if earlier != where:
            same_file = earlier.rpartition(":")[0] == where.rpartition(":")[0]
            place = f"line {earlier.rpartition(':')[2]}" if same_file else earlier
            raise PrlhfError(
                f"{where} repeats {place}: prompt '{row.prompt_id}', user '{row.user_id}'",
                "keep one response per prompt and user",
            )
