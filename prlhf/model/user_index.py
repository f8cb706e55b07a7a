"""Who the users of a checkpoint are: users.json, to be read by anyone, or for many users users.arrow, in which a few of
a million are found without reading all."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prlhf.errors import PrlhfError, one_line

MANY = 1000  # users, beyond which a checkpoint is made for reading in part
PLAIN, MAPPED = "users.json", "users.arrow"
COLUMNS = pa.schema([("id", pa.large_string()), ("text", pa.large_string())])


@dataclass(frozen=True)
class Users:
    """Some or all seen users of a checkpoint."""

    ids: list[str]
    texts: dict[str, str]  # of those who have one
    indices: list[int] | None  # whose index each id has, from 1, where these are some; None: all, in order
    count: int  # of all


def write_users(folder: Path, ids: list[str], texts: dict[str, str]) -> None:
    """Position i holds the user of index i + 1."""
    if len(ids) <= MANY:
        text = json.dumps({"ids": ids, "texts": texts}, ensure_ascii=False)
        (folder / PLAIN).write_text(text + "\n", encoding="utf-8")
        return
    table = pa.table([ids, [texts.get(user) for user in ids]], schema=COLUMNS)
    with pa.ipc.new_file(folder / MAPPED, COLUMNS) as file:
        file.write_table(table)


def made_for_parts(folder: Path) -> bool:
    return (folder / MAPPED).is_file()


def read_users(folder: Path, wanted: Collection[str] | None = None) -> Users:
    """All users of the checkpoint; of one made for reading in part those of `wanted` that it knows, where given."""
    if not made_for_parts(folder):
        return _read_plain(folder)
    try:
        with pa.memory_map(str(folder / MAPPED)) as file:
            table = pa.ipc.open_file(file).read_all()
            if not table.schema.equals(COLUMNS):
                raise ValueError(f"its columns are {table.schema.names}, not {COLUMNS.names}")
            table["id"].validate(full=True)  # before anything follows its offsets
            found = None if wanted is None else pc.indices_nonzero(pc.is_in(table["id"], _strings(wanted)))
            chosen = table if found is None else table.take(found)
            ids, texts = chosen["id"].to_pylist(), chosen["text"].to_pylist()
            count = len(table)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise _damaged(folder / MAPPED, one_line(error)) from error
    indices = None if found is None else [position + 1 for position in found.to_pylist()]
    return Users(ids, {user: text for user, text in zip(ids, texts, strict=True) if text is not None}, indices, count)


def _strings(values: Collection[str]) -> pa.Array:
    return pa.array(sorted(values), COLUMNS.field("id").type)


def _read_plain(folder: Path) -> Users:
    path = folder / PLAIN
    try:
        users = json.loads(path.read_text(encoding="utf-8"))
        ids, texts = users["ids"], users["texts"]
    except FileNotFoundError as error:
        raise PrlhfError(f"{folder} lacks {PLAIN}", "train again, or use a copy") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, one_line(error)) from error
    if not (isinstance(ids, list) and isinstance(texts, dict)):
        raise _damaged(path, "no list of ids with texts")
    return Users(ids, texts, None, len(ids))


def _damaged(path: Path, why: str) -> PrlhfError:
    return PrlhfError(f"{path} is damaged: {why}", "train again, or use a copy")
