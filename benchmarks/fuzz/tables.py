"""Damage to files that stay readable: parquet files with other columns and values, safetensors with other tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = ["", " ", "generic", "ann", "\x00", "é", "🙂", "x" * 3000, "0", "null"]
WHOLE = [0, 1, -1, 2, 3, 4, 99, 2**31 - 1, -(2**31)]
TYPES: list[Callable[[int], Any]] = [
    lambda n: pa.array([1] * n),
    lambda n: pa.array([0.5] * n),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([None] * n),
    lambda n: pa.array([None] * n, pa.string()),
    lambda n: pa.array(["x"] * n),
    lambda n: pa.array([b"\xff"] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([[1, 2]] * n),
    lambda n: pa.array([[]] * n, pa.list_(pa.string())),
    lambda n: pa.array([{"role": "user", "content": None}] * n),
    lambda n: pa.array([[{"role": "user", "content": "Why?"}]] * n),
    lambda n: pa.array([[{"role": None, "content": "Why?"}]] * n),
    lambda n: pa.array([[None]] * n, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([2**62] * n),
    lambda n: pa.array([0] * n, pa.timestamp("s")),
]


def parquet(rng: Random, path: Path) -> str:
    table = pq.read_table(path)
    if not table.column_names:
        return "as it was"
    name = rng.choice(table.column_names)
    at = table.column_names.index(name)
    kind = rng.choice(["value", "value", "value", "type", "drop", "rename", "twice", "empty", "rows", "order"])
    if kind == "value":
        values, how = _values(rng, table.column(at))
        table = table.set_column(at, name, values)
    elif kind == "type":
        values = rng.choice(TYPES)(table.num_rows)
        table, how = table.set_column(at, name, values), f"is {values.type}"
    elif kind == "drop":
        table, how = table.drop_columns([name]), "is gone"
    elif kind == "rename":
        new = rng.choice([name + "s", name.upper(), "", "é"])
        table, how = table.rename_columns([new if n == name else n for n in table.column_names]), f"is called {new!r}"
    elif kind == "twice":
        table, how = table.append_column(name, table.column(at)), "is there twice"
    elif kind == "empty":
        table, how = table.slice(0, 0), "has no rows"
    elif kind == "rows":
        table, how = pa.concat_tables([table, table.slice(0, 2)]), "has rows twice"
    else:
        table, how = table.take(list(range(table.num_rows))[::-1]), "is in another order"
    pq.write_table(table, path)
    return f"{name} {how}"


def _values(rng: Random, column: Any) -> tuple[Any, str]:
    """The column with one value or all values replaced by another of its type, or by null."""
    new = {"string": rng.choice(TEXTS), "int32": rng.choice(WHOLE), "bool": rng.random() < 0.5}.get(str(column.type))
    new = None if rng.random() < 0.3 else new
    values = column.to_pylist()
    chosen = range(len(values)) if rng.random() < 0.3 or not values else [rng.randrange(len(values))]
    for row in chosen:
        values[row] = new
    return pa.array(values, column.type), f"= {new!r:.20} in {len(chosen)} rows"


def tensors(rng: Random, path: Path) -> str:
    from safetensors.numpy import load_file, save_file

    found = load_file(path)
    if not found:
        return "as it was"
    name = rng.choice(sorted(found))
    kind, value = rng.choice(["drop", "rename", "more", "shape", "longer", "type", "nan", "empty", "all"]), found[name]
    if kind in ("drop", "rename"):
        del found[name]
        found |= {name + ".x": value} if kind == "rename" else {}
    elif kind == "more":
        found["extra.weight"] = np.zeros((2, 2), np.float32)
    elif kind == "all":
        found = {}
    else:
        found[name] = {
            "shape": lambda: value.reshape(-1, 1),
            "longer": lambda: np.concatenate([value, value]) if value.ndim else value,
            "type": lambda: value.astype(rng.choice([np.float16, np.float64, np.int32, np.bool_])),
            "nan": lambda: np.full_like(value, np.nan),
            "empty": lambda: value[:0] if value.ndim else value,
        }[kind]()
    save_file(found, path, metadata=rng.choice([None, {"format": "pt"}, {"format": "tf"}]))
    return f"{name}: {kind}"
