"""The formats of files: a table of suffixes and their readers. A new format is a reader and its line in the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.errors import PrlhfError
from prlhf.source.raw import Raw, RawRows, csv_rows, json_rows
from prlhf.source.streams import PACKED, readable

ARCHIVES, SHEETS = (".zip", ".tar", ".tgz", ".7z", ".rar"), (".xlsx", ".xls", ".ods")
BINARY = (*ARCHIVES, *SHEETS, ".pdf", ".docx", ".pt", ".safetensors", ".gguf")  # not text either
PARQUET_BATCH = 1024  # rows held in memory at a time


def file_rows(paths: list[Path]) -> RawRows:
    """Open files and return their rows, one file after the other.

    Raises:
        PrlhfError: a file has an unknown format or cannot be read.
    """
    files = [_open(path) for path in paths]
    return RawRows(sum(file.total for file in files), (raw for file in files for raw in file.rows))


def form(path: Path) -> str:
    """Return the format by the file's name, such as `.csv` for `a.CSV.gz`; "" if it has none of `READERS`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in PACKED
    found = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes and not packed else ""
    return found if found in (TEXTS if packed else READERS) else ""


def local_path(text: str) -> Path:
    """Return the path that a user wrote, with `~` and variables expanded, which quotes keep a shell from doing."""
    return Path(os.path.expandvars(text)).expanduser()


def _open(path: Path) -> RawRows:
    kind = form(path)
    if not kind:
        raise PrlhfError(f"{path} is not in a known format", _hint(path))
    with readable(path):
        return READERS[kind](path)


def _hint(path: Path) -> str:
    other = path.suffix.lower()
    if other in ARCHIVES or path.suffixes[-2:-1] == [".tar"]:
        return "unpack it, and give the folder or a file in it"
    if other in SHEETS:
        return "save it as CSV (UTF-8)"
    if other in PACKED and form(path.with_suffix("")):
        return f"decompress it: {path.with_suffix('').suffix} files have their own compression"
    return f"give {FORMATS}, or a folder of such files"


def _parquet(path: Path) -> RawRows:
    return RawRows(pq.read_metadata(path).num_rows, _parquet_rows(path))


def _parquet_rows(path: Path) -> Iterator[Raw]:
    with readable(path), pq.ParquetFile(path) as file:  # pq.read_table would import pyarrow.dataset, and with it pandas
        yield from _numbered(path, file.iter_batches(PARQUET_BATCH))


def _arrow(path: Path) -> RawRows:
    return RawRows(sum(batch.num_rows for batch in _arrow_batches(path)), _arrow_rows(path))


def _arrow_rows(path: Path) -> Iterator[Raw]:
    with readable(path):
        yield from _numbered(path, _arrow_batches(path))


def _numbered(path: Path, batches: Iterator[Any]) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # otherwise a damaged length is read beyond the end of the buffer
        for value in batch.to_pylist():
            number += 1
            yield Raw(f"{path}:row {number}", value)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """The batches of a file in the stream format, which `save_to_disk` writes, or in the file format."""
    with pa.memory_map(str(path)) as source:
        if source.size() == 0:
            return
        if source.read(6) == b"ARROW1":
            with pa.ipc.open_file(source) as file:
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            source.seek(0)
            with pa.ipc.open_stream(source) as stream:
                yield from stream


# ---- the table ----

TEXTS: dict[str, Callable[[Path], RawRows]] = {  # may be compressed
    ".jsonl": partial(json_rows, lines=True),
    ".json": partial(json_rows, lines=False),
    ".csv": partial(csv_rows, delimiter=None),
    ".tsv": partial(csv_rows, delimiter="\t"),
    ".ndjson": partial(json_rows, lines=True),
}
TABLES: dict[str, Callable[[Path], RawRows]] = {".parquet": _parquet, ".arrow": _arrow}
READERS = {**TEXTS, **TABLES}
FORMATS = f"{', '.join(TEXTS)} (each also {', '.join(PACKED[:-1])} or {PACKED[-1]}), {' or '.join(TABLES)}"
