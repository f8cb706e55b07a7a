"""Counts of rows: every row is kept, or dropped once for a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.rows import EXAMPLES, DropCounts, Dropped, Row, RowReader
from prlhf.errors import PrlhfError
from prlhf.progress import SILENT
from prlhf.source.raw import Raw, RawRows
from prlhf.source.values import Malformed


def convert(value: Any, number: int) -> Row:
    if value == "bad":
        raise Malformed("it is bad")
    if value == "dull":
        raise Dropped("dull")
    return Row(value, "p", "a" if value != "clash" else str(number), "b", "u")


def raws(values: list[str]) -> RawRows:
    rows = [Raw(f"f:{n}", v, "cut off" if v == "cut" else "") for n, v in enumerate(values, start=1)]
    return RawRows(len(values), rows)


@given(st.lists(st.sampled_from(["bad", "cut", "dull", "clash", "x", "y"]), max_size=60))
def test_counts_add_up(values: list[str]) -> None:
    drops = DropCounts("dull", "repeat")
    kept = RowReader("skip", drops, SILENT).read("train", raws(values), convert)
    report = drops.report()
    assert report["read"] == {"train": len(values)}
    assert len(values) == len(kept) + sum(report["dropped"].values())
    assert report["filters"][-1]["train"]["after"] == len(kept)
    clashes = max(0, values.count("clash") - 1)
    assert report["dropped"]["malformed"] == values.count("bad") + values.count("cut") + clashes
    assert report["dropped"]["dull"] == values.count("dull")
    assert len({row.id for row in kept}) == len(kept)


def test_only_the_first_malformed_rows_are_named() -> None:
    drops = DropCounts()
    RowReader("skip", drops, SILENT).read("train", raws(["bad"] * (EXAMPLES + 5)), convert)
    assert len(drops.report()["malformed"]) == EXAMPLES
    assert drops.by_reason() == {"malformed": EXAMPLES + 5}


def test_strict_names_the_first_and_counts_all() -> None:
    with pytest.raises(PrlhfError) as error:
        RowReader("strict", DropCounts(), SILENT).read("train", raws(["x", "bad", "cut"]), convert)
    assert error.value.message == "f:2: it is bad (the first of 2 malformed rows)"
    assert error.value.hint == "fix the row, or drop such rows with --skip-bad"


def test_parts_are_counted_apart_and_ids_are_their_own() -> None:
    drops = DropCounts("repeat")
    reader = RowReader("strict", drops, SILENT)
    assert len(reader.read("train", raws(["x", "x"]), convert)) == 1
    assert len(reader.read("eval", raws(["x"]), convert)) == 1
    assert drops.report()["filters"] == [
        {"filter": "malformed", "train": {"before": 2, "after": 2}, "eval": {"before": 1, "after": 1}},
        {"filter": "repeat", "train": {"before": 2, "after": 1}, "eval": {"before": 1, "after": 1}},
    ]


def test_an_undeclared_filter_is_a_bug() -> None:
    with pytest.raises(KeyError):
        DropCounts().drop("train", "whim")
