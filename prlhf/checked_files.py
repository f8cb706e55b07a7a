"""Files of a folder of ours, read and checked: what is wrong with one is a PrlhfError with a hint of the caller's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from prlhf.errors import PrlhfError, one_line
from prlhf.parse import json_value


def read_value(path: Path, kind: TypeAdapter[Any], hint: str) -> Any:
    """The value of a JSON file, of a `kind`."""
    try:
        return kind.validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", hint) from error


def read_lines(path: Path, kind: TypeAdapter[Any], hint: str) -> list[Any]:
    """The rows, of a `kind`, of a JSONL file that need not be there."""
    if not os.path.lexists(path):
        return []
    try:
        return [kind.validate_python(json_value(line)) for line in path.read_bytes().split(b"\n") if line]
    except (OSError, ValueError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", hint) from error


def read_table(path: Path, schema: pa.Schema, hint: str) -> list[dict[str, Any]]:
    """The rows of a parquet file that has the columns of `schema`, each once, and a value in every cell."""
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would import pyarrow.dataset, and with it pandas
            table = file.read()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # names of columns are text, too
        raise PrlhfError(f"cannot read {path}: {one_line(error)}", hint) from error
    for name in schema.names:
        if (times := table.column_names.count(name)) != 1:
            raise PrlhfError(f"{path} has {f'{times} columns' if times else 'no column'} '{name}'", hint)
    try:
        table = table.select(schema.names).cast(schema)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PrlhfError(f"{path} has a column of another type: {one_line(error)}", hint) from error
    for name in schema.names:
        if any(_has_null(chunk) for chunk in table.column(name).chunks):
            raise PrlhfError(f"{path} has an empty cell in the column '{name}'", hint)
    return rows


def _has_null(values: Any) -> bool:
    """Whether a value is missing, in messages too."""
    if values.null_count:
        return True
    if pa.types.is_list(values.type):
        return _has_null(values.flatten())
    return pa.types.is_struct(values.type) and any(map(_has_null, values.flatten()))
