"""Reading tables: every format, compression and encoding gives the same rows."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.errors import PrlhfError
from prlhf.source.folders import data_files, open_folder, split_files
from prlhf.source.formats import file_rows

ROWS = [
    {"prompt": "Why, then?", "user_id": "ann"},
    {"prompt": 'He said "no"; twice.', "user_id": "bo"},
    {"prompt": "Où? 🦊\n第二行", "user_id": "ž"},
]


def lines(rows: list[Any] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(delimiter: str = ",", end: str = "\r\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "user_id"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


def arrow(stream: bool) -> bytes:
    out, rows = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, rows.schema) as writer:
        writer.write_table(rows)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


LIST = json.dumps(ROWS, indent=2)
FILES: dict[str, bytes] = {
    "a.jsonl": lines().encode(),
    "a.ndjson": lines().encode(),
    "A.JSONL": lines().encode(),
    "blank lines.jsonl": ("\n" + lines().replace("\n", "\r\n\r\n")).encode(),
    "no last newline.jsonl": lines().rstrip("\n").encode(),
    "marked.jsonl": lines().encode("utf-8-sig"),
    "utf16.jsonl": lines().encode("utf-16"),
    "utf16be.jsonl": b"\xfe\xff" + lines().encode("utf-16-be"),
    "utf16 without mark.jsonl": lines().encode("utf-16-le"),
    "list in lines.jsonl": LIST.encode(),
    "short list.jsonl": json.dumps(ROWS).encode(),
    "list.json": LIST.encode(),
    "marked.json": LIST.encode("utf-8-sig"),
    "utf16.json": LIST.encode("utf-16"),
    "lines.json": lines().encode(),
    "holder.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "short holder.json": json.dumps({"rows": ROWS}).encode(),
    "pretty, one by one.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "columns.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}).encode(),
    "pandas.json": json.dumps({key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]}).encode(),
    "a.csv": table().encode(),
    "unix.csv": table(end="\n").encode(),
    "marked.csv": table().encode("utf-8-sig"),
    "utf16.csv": table().encode("utf-16"),
    "semicolons.csv": table(";").encode(),
    "excel.csv": b"sep=;\r\n" + table(";").encode(),
    "excel-marked.csv": ('"SEP=|"\r\n' + table("|")).encode("utf-8-sig"),
    "a.tsv": table("\t").encode(),
    "utf16.tsv": table("\t").encode("utf-16"),
    "a.parquet": parquet(),
    "a.arrow": arrow(stream=True),
    "file.arrow": arrow(stream=False),
    "a.json.gz": gzip.compress(LIST.encode()),
    "a.jsonl.gz": gzip.compress(lines().encode()),
    "a.csv.gz": gzip.compress(table().encode("utf-8-sig")),
    "a.jsonl.bz2": bz2.compress(lines().encode()),
    "a.jsonl.xz": lzma.compress(lines().encode("utf-16")),
    "a.jsonl.zst": zstd(lines().encode()),
    "a.tsv.zst": zstd(table("\t").encode()),
    "two.parts.jsonl.gz": gzip.compress(lines(ROWS[:1]).encode()) + gzip.compress(lines(ROWS[1:]).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    read = file_rows([tmp_path / name])
    raw = list(read.rows)
    assert [(row.value, row.problem) for row in raw] == [(row, "") for row in ROWS]
    assert read.total >= len(ROWS)
    assert all(row.location.startswith(str(tmp_path / name) + ":") for row in raw)


def damaged_arrow() -> bytes:
    """An Arrow file whose second text starts before its first."""
    ends = [0]
    for row in ROWS:
        ends.append(ends[-1] + len(row["prompt"].encode()))
    good = struct.pack("<4i", *ends)
    assert good in arrow(stream=True)
    return arrow(stream=True).replace(good, struct.pack("<4i", 0, ends[2], ends[1], ends[3]))


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "cut.jsonl.gz": (gzip.compress(lines().encode())[:-9], "cannot read .*cut.jsonl.gz: "),
    "plain.jsonl.gz": (lines().encode(), "cannot read .*Not a gzipped file"),
    "plain.csv.zst": (table().encode(), "cannot read .*plain.csv.zst: "),
    "plain.json.xz": (b"[]", "cannot read .*plain.json.xz: "),
    "plain.json.bz2": (b"[]", "cannot read .*plain.json.bz2: "),
    "broken.parquet": (b"PAR1 and then nothing", "cannot read "),
    "empty.parquet": (b"", "cannot read "),
    "broken.arrow": (b"nothing of the kind", "cannot read "),
    "half.arrow": (arrow(stream=True)[:-200], "cannot read "),
    "damaged.arrow": (damaged_arrow(), "cannot read "),
    "broken.json": (b"[1, 2", "it is not JSON"),
    "utf16.json": (b"\xff\xfe[\x00", "it is not JSON"),
    "odd.csv": (b"\xff\xfea\x00b", "it is not UTF-8|cannot read"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "two columns 'a'"),
    "a.zip": (b"PK", "is not in a known format; unpack it"),
    "a.tar.gz": (b"", "is not in a known format; unpack it"),
    "a.xlsx": (b"PK", "save it as CSV"),
    "a.parquet.gz": (b"", "decompress it: .parquet files have their own compression"),
    "a.txt": (b"", "give .jsonl, .json, .csv"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PrlhfError, match=message) as error:
        list(file_rows([tmp_path / name]).rows)
    assert "\n" not in str(error.value)
    assert error.value.hint


BAD_ROWS = {
    "cells.csv": (b"a,b\n1,2\n1,2,3\n\n1\n", ["", "it has 3 cells, and the header has 2", "it has 1 cells"]),
    "latin.csv": (b"a,b\n\xe9,2\n3,4\n", ["it is not UTF-8: save the file as UTF-8", ""]),
    "lines.jsonl": (b'{"a": 1}\n{"a": \n\xff\n[', ["", "it is not JSON", "it is not UTF-8", "it is not JSON"]),
    "empty.csv": (b"", []),
    "header.tsv": (b"a\tb\n", []),
    "empty.jsonl": (b"", []),
    "empty.json": (b" \n", []),
    "empty list.json": (b"[]", []),
    "mark.csv": (b"\xef\xbb\xbf", []),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_cannot_be_parsed_say_why(name: str, tmp_path: Path) -> None:
    content, problems = BAD_ROWS[name]
    (tmp_path / name).write_bytes(content)
    found = [row.problem for row in file_rows([tmp_path / name]).rows]
    assert len(found) == len(problems)
    for problem, start in zip(found, problems, strict=True):
        assert problem.startswith(start)
        assert bool(problem) == bool(start)


def test_rows_of_a_csv_stand_where_they_begin(tmp_path: Path) -> None:
    for first, lines in (("", ["2", "4"]), ("sep=,\n", ["3", "5"])):
        (tmp_path / "a.csv").write_text(first + 'a,b\n"one\ntwo",x\n3,y\n')
        rows = file_rows([tmp_path / "a.csv"])
        assert [row.location.rpartition(":")[2] for row in rows.rows] == lines
        assert rows.total == 3  # lines after the header


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".csv.gz"]))
def test_no_bytes_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(PrlhfError):
        list(file_rows([path]).rows)


# ---- folders ----

Files = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Files:
    """folder("train/0000.jsonl", ...): files of one row that contains the file's name."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"file": name}) + "\n")
        return tmp_path / "raw"

    return make


def names_of(splits: dict[str, Any]) -> dict[str, list[str]]:
    return {split: [raw.value["file"] for raw in rows.rows] for split, rows in splits.items()}


LAYOUTS: dict[str, tuple[tuple[str, ...], dict[str, list[str]]]] = {
    "flat": (("train.jsonl", "test.jsonl"), {"test": ["test.jsonl"], "train": ["train.jsonl"]}),
    "shards": (
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001-0a1b2c3d4e5f.jsonl"),
        {
            "test": ["test-00000-of-00001-0a1b2c3d4e5f.jsonl"],
            "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        },
    ),
    "in a folder data": (("data/train.jsonl", "README.md"), {"train": ["data/train.jsonl"]}),
    "a folder a split": (
        ("train/0000.jsonl", "train/0001.jsonl", "test/0000.jsonl"),
        {"test": ["test/0000.jsonl"], "train": ["train/0000.jsonl", "train/0001.jsonl"]},
    ),
    "one configuration": (("default/train/0000.jsonl",), {"train": ["default/train/0000.jsonl"]}),
    "other names": (
        ("data/train_prefs-00000-of-00001.jsonl", "data/test_prefs-00000-of-00001.jsonl"),
        {
            "test_prefs": ["data/test_prefs-00000-of-00001.jsonl"],
            "train_prefs": ["data/train_prefs-00000-of-00001.jsonl"],
        },
    ),
    "no split": (("a.jsonl", "more/b.jsonl"), {"": ["a.jsonl", "more/b.jsonl"]}),
    "what stands beside": (
        (
            ".hidden.jsonl",
            "._train.jsonl",
            "__MACOSX/train.jsonl",
            ".cache/x.jsonl",
            "dataset_info.json",
            "train.jsonl",
        ),
        {"train": ["train.jsonl"]},
    ),
    "packed": (("train.jsonl", "notes.txt", ".DS_Store"), {"train": ["train.jsonl"]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_recognized_by_names(layout: str, folder: Files) -> None:
    names, expected = LAYOUTS[layout]
    assert names_of(open_folder(folder(*names), None)) == expected


def test_configurations_are_chosen(folder: Files) -> None:
    raw = folder("easy/train/0000.jsonl", "hard/train/0000.jsonl")
    with pytest.raises(PrlhfError, match=r"has the configurations easy, hard; choose one: --config easy"):
        open_folder(raw, None)
    assert names_of(open_folder(raw, "hard")) == {"train": ["hard/train/0000.jsonl"]}
    with pytest.raises(PrlhfError, match=r"no configuration 'hrd'; did you mean 'hard'"):
        open_folder(raw, "hrd")


def test_several_formats_of_one_split_are_refused(folder: Files) -> None:
    raw = folder("train.jsonl", "test.jsonl")
    (raw / "train.csv").write_text("file\ntrain.csv\n")
    with pytest.raises(PrlhfError, match=r"holds 'train' in several formats: train.csv, train.jsonl"):
        open_folder(raw, None)
    assert [path.name for path in split_files(raw, "test")] == ["test.jsonl"]


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert [raw.value for raw in open_folder(tmp_path / "one", None)[""].rows] == ROWS
    (tmp_path / "one" / "cache-0123.arrow").write_bytes(arrow(stream=True))  # files that `map` writes are not the data
    assert len(data_files(tmp_path / "one")) == 2
    datasets.DatasetDict({"train_prefs": data, "test_prefs": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    found = {name: len(list(rows.rows)) for name, rows in open_folder(tmp_path / "two", None).items()}
    assert found == {"test_prefs": 1, "train_prefs": 3}
    next((tmp_path / "one").glob("data-00001*")).unlink()
    with pytest.raises(PrlhfError, match=r"is not complete: data-00001-of-00002.arrow is missing"):
        data_files(tmp_path / "one")
