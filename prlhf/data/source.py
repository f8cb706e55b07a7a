"""Where raw rows come from: JSONL, JSON and parquet files, folders of them, and the hub.

Knows nothing of what a row means. A row that cannot be parsed is passed on with its problem; a file that
cannot be read at all is an error.
"""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.data.rows import Raw, RawRows
from prlhf.errors import PrlhfError

SUFFIXES = (".jsonl", ".json", ".parquet")
PARQUET_BATCH = 1024  # rows held in memory at a time
PROBE_SECONDS = 3.0


def file_rows(paths: list[Path]) -> RawRows:
    """The rows of files, one file after the other."""
    files = [_open(path) for path in paths]
    return RawRows(sum(file.total for file in files), (raw for file in files for raw in file.rows))


def data_files(folder: Path) -> list[Path]:
    """The data files directly in `folder`, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def split_files(folder: Path, split: str) -> list[Path]:
    """`train.jsonl`, `train-00000-of-00002.parquet`, … or the files in a subfolder `train`; [] where there are none."""
    named = re.compile(rf"{split}([-._].*)?")
    found = [path for path in data_files(folder) if named.fullmatch(path.stem)]
    if not found and (folder / split).is_dir():
        found = data_files(folder / split)
    if len({path.suffix for path in found}) > 1:
        names = ", ".join(path.name for path in found)
        raise PrlhfError(f"{folder} holds '{split}' in several formats: {names}", "keep one of them")
    return found


def folder_rows(source: str, names: Mapping[str, str]) -> dict[str, RawRows]:
    """The rows of each part, read from the files in the folder `source` that `names` gives for it."""
    folder, wanted = Path(source), " and ".join(f"{name}.jsonl" for name in names.values())
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise PrlhfError(f"--source {source} {why}", f"give the folder that holds {wanted}")
    files = {part: split_files(folder, name) for part, name in names.items()}
    for part, name in names.items():
        if not files[part]:
            raise PrlhfError(f"{source} has no {name}.jsonl", f"put {name}.jsonl or {name}*.parquet into it")
    return {part: file_rows(found) for part, found in files.items()}


def _open(path: Path) -> RawRows:
    if path.suffix not in SUFFIXES:
        raise PrlhfError(f"{path} is of no known format", f"give a {', '.join(SUFFIXES)} file or a folder of them")
    with _readable(path):
        if path.suffix == ".parquet":
            return RawRows(pq.read_metadata(path).num_rows, _parquet_rows(path))
        if _is_list(path):
            items = _json_items(path)
            return RawRows(len(items), items)
        with path.open("rb") as file:
            return RawRows(sum(1 for _ in file), _json_lines(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn a file that cannot be read into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise PrlhfError(f"cannot read {path}: {why}", "check the file") from error


def _is_list(path: Path) -> bool:
    """Whether a JSON file is one list; many a `.json` file holds one object a line."""
    with path.open("rb") as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf")
        return path.suffix == ".json" and head.lstrip()[:1] == b"["


def _json_lines(path: Path) -> Iterator[Raw]:
    # Bytes: text mode would also break lines at a lone carriage return, and stop at bad UTF-8.
    with _readable(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                value, problem = _parse(line.rstrip())
                yield Raw(f"{path}:{number}", value, problem)


def _json_items(path: Path) -> list[Raw]:
    value, problem = _parse(path.read_bytes())
    if problem:
        raise PrlhfError(f"{path}: {problem}", "mend the file: it should be one JSON list")
    return [Raw(f"{path}:item {number}", item) for number, item in enumerate(value, start=1)]


def _parse(data: bytes) -> tuple[Any, str]:
    """(value, "") or (None, why not). The bare ValueError is for numbers of thousands of digits."""
    try:
        return json.loads(data.decode("utf-8-sig")), ""
    except UnicodeDecodeError as error:
        return None, f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""  # a JSONL line is always its own line 1
        return None, f"it is no JSON ({error.msg}, {line}column {error.colno})"
    except (ValueError, RecursionError) as error:
        return None, f"it is no JSON ({error})"


def _parquet_rows(path: Path) -> Iterator[Raw]:
    number = 0
    with _readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(PARQUET_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield Raw(f"{path}:row {number}", value)


def hub_splits(repo: str, instead: str, config: str | None = None, revision: str | None = None) -> dict[str, RawRows]:
    """The splits of a hub data set. `instead`: the command that does without the hub, for the error's hint."""
    _probe(repo, instead)
    import datasets

    try:
        found = datasets.load_dataset(repo, config, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise PrlhfError(f"the hub has no data set '{repo}', or it is private", instead) from error
    except Exception as error:  # datasets, the hub and httpx each have errors of their own; all mean: no data
        raise _unreachable(repo, error, instead) from error
    return {str(name): RawRows(len(rows), _hub_rows(f"{repo}[{name}]", rows)) for name, rows in found.items()}


def _hub_rows(name: str, rows: Iterable[Any]) -> Iterator[Raw]:
    for number, value in enumerate(rows, start=1):
        yield Raw(f"{name}:row {number}", value)


def _probe(repo: str, instead: str) -> None:
    """Ask the hub's port once: without this, a hub that cannot be reached costs half a minute of retries."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or _proxies():
        return  # offline answers at once from the cache, and a proxy would have to be asked in its own way
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise _unreachable(repo, error, f"{instead}, or set HF_HUB_OFFLINE=1 to use a cached copy") from error


def _proxies() -> set[str]:
    return set(urllib.request.getproxies()) & {"http", "https", "all"}


def _unreachable(repo: str, error: Exception, instead: str) -> PrlhfError:
    why = " ".join(str(error).split()) or type(error).__name__
    lost = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
    return PrlhfError(f"cannot {'reach the hub for' if lost else 'load'} {repo} ({why})", instead)
