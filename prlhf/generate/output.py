"""Where responses are stored, one file or a folder of shards; which are there already, and which are left to write.

The work is split into blocks. A file is complete at the end, in the order of the requests; until then its rows are in
OUT.partial, as they come. In a folder a block is a shard: it appears when its last response is written, and a resumed
run writes the missing shards. The result does not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from prlhf.config import GenerateConfig
from prlhf.errors import PrlhfError
from prlhf.files import atomic_file, full_disk_named
from prlhf.folders import claim, claim_file, mark
from prlhf.responses import (
    MANIFEST,
    Response,
    has_our_columns,
    parse_line,
    prompt_type,
    read_responses,
    read_shards_manifest,
    shard_name,
    to_line,
    write_rows,
)

Key = tuple[str, str]  # (prompt_id, user_id)
ROW_BEGINS = b'{"prompt_id": '  # the beginning of a line in a file of responses
Form = Literal["jsonl", "parquet"]


class Keyed(Protocol):
    """A request, or a row."""

    @property
    def prompt_id(self) -> str:
        """The id of the prompt."""

    @property
    def user_id(self) -> str:
        """The id of the user."""

    @property
    def prompt(self) -> Any:
        """The prompt: text, or messages."""


@dataclass(frozen=True)
class Block:
    """Requests that are written together. `number` is that of the shard, in a folder."""

    number: int
    requests: Sequence[Any]


def key_of(one: Keyed) -> Key:
    """The ids of prompt and user, which identify a response."""
    return one.prompt_id, one.user_id


def form_of(config: GenerateConfig) -> tuple[Form, bool]:
    """The format, and whether in shards: by `--shards`, or by the name; without an ending it is a folder."""
    if config.shards:
        return config.shards, True
    return ("jsonl" if config.out.suffix not in ("", ".parquet") else "parquet"), not config.out.suffix


def claim_output(config: GenerateConfig) -> None:
    """Check that `config.out` is new or was begun by an earlier run, before anything is loaded.

    Raises:
        PrlhfError: it must not be written.
    """
    out, (form, shards) = config.out, form_of(config)
    if os.path.isdir(out) != shards and os.path.exists(out):  # unlike Path's, no error for names that are too long
        wanted = "--shards is for a folder" if shards else "a folder of shards is named without an ending"
        raise PrlhfError(f"{out} is a {'file' if shards else 'folder'}, and {wanted}", "choose another --out")
    if shards:
        claim(out, "responses")
        return
    claim_file(out)
    claim_file(partial(out))
    for path in (out, partial(out)):
        if path.exists() and not holds_responses(path, "jsonl" if path != out else form):
            raise PrlhfError(f"{path} exists and does not hold responses of `prlhf generate`", "choose another --out")


def holds_responses(path: Path, form: Form) -> bool:
    """Whether a file is empty, or begins with a response of `prlhf generate`, which may be cut off."""
    if path.stat().st_size == 0:
        return True
    if form == "parquet":
        return has_our_columns(path)
    with path.open("rb") as file:
        first = file.readline()
    if not first.endswith(b"\n"):
        return first.startswith(ROW_BEGINS) or ROW_BEGINS.startswith(first)
    try:
        parse_line(first, str(path))
    except PrlhfError:
        return False
    return True


def open_output(config: GenerateConfig, settings: dict[str, Any], requests: Sequence[Keyed]) -> OneFile | Shards:
    """The output for `requests`, with the responses that earlier runs with the same settings wrote."""
    form, shards = form_of(config)
    if form == "parquet":
        prompt_type(request.prompt for request in requests)
    with full_disk_named(config.out):
        (config.out if shards else config.out.parent).mkdir(parents=True, exist_ok=True)
    return Shards(config, settings, requests, form) if shards else OneFile(config, settings, requests, form)


# ---- one file ----


class OneFile:
    """`out`, JSONL or parquet. Rows of earlier runs, for other users or prompts, stay at its end."""

    shards = 0

    def __init__(self, config: GenerateConfig, settings: dict[str, Any], requests: Sequence[Keyed], form: Form) -> None:
        self.out, self.requests, self.form, self.most = config.out, requests, form, config.block
        self.rows = already_written(config.out, settings)

    @property
    def count(self) -> int:
        """The number of responses that are there."""
        return sum(key_of(request) in self.rows for request in self.requests)

    def blocks(self, workers: int) -> list[Block]:
        """What is left to write: one block for this process, or blocks of equal size for `workers`."""
        left = [request for request in self.requests if key_of(request) not in self.rows]
        size = even_blocks(len(left), workers, self.most) if workers else len(left)
        return [
            Block(number, left[start : start + size]) for number, start in enumerate(range(0, len(left), size or 1))
        ]

    def add(self, _block: int, rows: Sequence[Response]) -> None:
        """Append rows to the partial file."""
        path = partial(self.out)
        with full_disk_named(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(map(to_line, rows)))
        self.rows |= {key_of(row): row for row in rows}

    def end_block(self, _block: int) -> None:
        """Do nothing: all rows are in one file."""

    def finish(self) -> None:
        """Write the whole file: rows in the order of the requests, then those of earlier runs."""
        put_in_place(self.out, self.rows, map(key_of, self.requests), self.form)


def even_blocks(count: int, workers: int, most: int) -> int:
    """The size of blocks, at most `most`, such that each worker gets equally many."""
    rounds = math.ceil(count / (workers * most))
    return max(1, math.ceil(count / (workers * max(rounds, 1))))


def partial(out: Path) -> Path:
    """The file to which rows of `out` are appended until all are there."""
    return out.with_name(out.name + ".partial")


def already_written(out: Path, settings: dict[str, Any]) -> dict[Key, Response]:
    """The rows of an earlier run with the same settings, finished or killed."""
    rows = read_responses(out) if out.exists() and out.stat().st_size else []
    whole = None
    if partial(out).exists():
        more, whole = read_responses(partial(out), partial=True)
        rows += more
    for row in rows:
        refuse_other(out, row.settings, settings)
    if whole is not None:
        os.truncate(partial(out), whole)
    return {key_of(row): row for row in rows}


def refuse_other(out: Path, there: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise PrlhfError if the settings of the rows that are there differ from `settings`."""
    for key, value in settings.items():
        if there.get(key) != value:
            raise PrlhfError(
                f"{out} holds responses with {key} = {there.get(key)}, not {value}",
                "choose another --out, or remove it",
            )


def put_in_place(out: Path, rows: dict[Key, Response], first: Iterable[Key], form: Form) -> None:
    """Write the whole file, the rows named by `first` first and in that order; remove the partial file."""
    order = {key: i for i, key in enumerate(first)}
    with atomic_file(out) as beside:
        ordered = sorted(rows.items(), key=lambda item: order.get(item[0], len(order)))
        write_rows(beside, [row for _, row in ordered], form)
    partial(out).unlink(missing_ok=True)


# ---- a folder of shards ----


class Shards:
    """A folder with a manifest and a shard per `block` requests. Other requests cannot be added to it."""

    def __init__(self, config: GenerateConfig, settings: dict[str, Any], requests: Sequence[Keyed], form: Form) -> None:
        self.out, self.requests, self.form, self.size = config.out, requests, form, config.block
        self.cut = [
            Block(i, requests[start : start + self.size]) for i, start in enumerate(range(0, len(requests), self.size))
        ]
        self.shards = len(self.cut)
        self.rows: dict[int, list[Response]] = {}  # of blocks that are being written
        self._introduce(settings)

    def _introduce(self, settings: dict[str, Any]) -> None:
        """Write the manifest, or compare it with the one that is there."""
        keys = hashlib.sha256(json.dumps([key_of(request) for request in self.requests]).encode()).hexdigest()[:16]
        about: dict[str, Any] = {
            "format": self.form,
            "shards": self.shards,
            "block": self.size,
            "responses": len(self.requests),
        }
        about |= {"pairs": keys, "settings": settings}
        if (self.out / MANIFEST).exists():
            there = read_shards_manifest(self.out)
            refuse_other(self.out, there["settings"], settings)
            for key, what in (("format", "--shards"), ("block", "--block"), ("pairs", "users or prompts")):
                if there.get(key) != about[key]:
                    raise PrlhfError(
                        f"{self.out} has shards that were begun with other {what}",
                        "choose another --out, or remove it",
                    )
            mark(self.out, "responses")
            return
        mark(self.out, "responses")
        with atomic_file(self.out / MANIFEST) as beside:
            beside.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def count(self) -> int:
        """The number of responses that are there, in whole shards."""
        return sum(len(block.requests) for block in self.cut if self._path(block.number).is_file())

    def blocks(self, _workers: int) -> list[Block]:
        """The blocks whose shards are missing, for any number of workers."""
        return [block for block in self.cut if not self._path(block.number).is_file()]

    def add(self, block: int, rows: Sequence[Response]) -> None:
        """Keep rows of `block` until it is complete."""
        self.rows.setdefault(block, []).extend(rows)

    def end_block(self, block: int) -> None:
        """Write the shard of a block whose rows were all added."""
        rows = {key_of(row): row for row in self.rows.pop(block)}
        with atomic_file(self._path(block)) as beside:
            write_rows(beside, [rows[key_of(request)] for request in self.cut[block].requests], self.form)

    def finish(self) -> None:
        """Do nothing: every shard is in its place already."""

    def _path(self, number: int) -> Path:
        return self.out / shard_name(number, self.form)
