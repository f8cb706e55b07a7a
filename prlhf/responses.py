"""What a policy wrote, one row per (prompt, user): as JSON lines, as parquet, or as a folder of shards of either.

`generate` writes them, `judge` reads them. A folder holds `part-00000.parquet` (or `.jsonl`) and so on, and a
`manifest.json` that says how many there are to be: with fewer, the run that writes them has not ended.
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
from prlhf.source.files import file_rows, form, local_path
from prlhf.source.formats import Cells, Raw
from prlhf.source.streams import read_all, readable

HOW_TO_MAKE = "make one with `prlhf generate`"
MANIFEST = "manifest.json"
# What a row that was written by hand need not say. Index 0: a user whom no training has seen, as far as is known.
BY_HAND = {"user_index": 0, "prompt_tokens": 0, "response_tokens": 0, "finish_reason": "stop", "settings": {}}

Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]  # a parquet column of them has 32 bits


@dataclass(frozen=True)
class Response:
    """One response. Token counts are the policy's own; `settings` is how it was decoded."""

    prompt_id: str
    user_id: str  # `generic` for the generic user
    user_index: Count  # 0: generic, or unseen in training
    prompt: Text
    response: str
    prompt_tokens: Count
    response_tokens: Count
    finish_reason: Literal["stop", "length"]  # length: cut off by the token limit
    settings: dict[str, Any]
    reward: float | None = None  # of a response kept as the best of several


class _About(BaseModel):
    """What is read of the manifest of a folder of shards."""

    shards: Count
    format: Literal["jsonl", "parquet"]
    settings: dict[str, Any]


_ROW, _ABOUT = TypeAdapter(Response), TypeAdapter(_About)


def words(text: str) -> int:
    """Number of words: what blanks separate, and each letter of a script that is written without blanks.

    The unit of Figure 3. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan have no blanks between words, so
    their letters are counted one by one (combining marks go with their letter, punctuation is not counted); a word of
    another script among them counts as one.
    """
    if text.isascii():
        return len(text.split())
    rest, letters = _letters_without_blanks().subn(" ", text)
    return int(letters) + sum(not (letters and _is_punctuation(part)) for part in rest.split())


@cache
def _letters_without_blanks() -> Any:
    import regex  # knows the scripts of letters, as `re` does not

    scripts = "".join(rf"\p{{scx={name}}}" for name in ("Han", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"))
    return regex.compile(rf"(?V1)[[{scripts}]&&\p{{L}}]\p{{M}}*")


def _is_punctuation(part: str) -> bool:
    """Whether what stands between such letters is their punctuation and nothing else."""
    return all(unicodedata.category(character).startswith("P") for character in part)


# ---- writing ----


def to_line(row: Response) -> str:
    """One row as a line of the file, newline included."""
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Sequence[Response], form: Literal["jsonl", "parquet"]) -> None:
    """A whole file of rows."""
    if form == "jsonl":
        path.write_text("".join(map(to_line, rows)), encoding="utf-8")
    else:
        pq.write_table(to_table(rows), path)


def to_table(rows: Sequence[Response]) -> pa.Table:
    """The rows' columns; `settings` is JSON text, prompts are text or lists of messages."""
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
    """Of a parquet column of `prompts`. Raises PrlhfError where it could not give them back as they are."""
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
    """Read and check responses: a folder of shards, or a file of any format that `prlhf.source` reads.

    Rows written by hand need `prompt`, `user_id` and `response` alone.

    `partial`: the JSON lines of a killed run. A last line without its newline is left out, and the rows come with
    the number of bytes up to which the file is whole: truncate there and append.
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


Placed = tuple[str, Response]  # where a row stands, for messages


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
    """Numbers, settings and conversations from a row of text; an empty cell is as if it were not there."""
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
    lines = content.split(b"\n")  # not splitlines: a response may hold U+2028 and its like
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
    """Whether a parquet file has the columns that `to_table` writes."""
    try:
        with pq.ParquetFile(path) as file:
            return set(to_table([]).column_names) - {"reward"} <= set(file.schema_arrow.names)
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return False


def read_shards_manifest(folder: Path) -> dict[str, Any]:
    """What a folder of shards says of itself: their number `shards`, their `format`, and how they were made."""
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
    """The file name of a shard: `part-00012.parquet`."""
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
    """The whole file in UTF-8, which another program may have saved otherwise."""
    with readable(path):
        return read_all(path) if path.is_file() else _read_bytes(path)


def parse_line(line: str | bytes, where: str) -> Response:
    """A row from its line; `where` it stands is named where it is refused."""
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
    """The line of a row that was written by hand, with what `generate` would have added."""
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
