"""For any rows, prep writes a data set that can be read, or prints one line and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.config import PrepConfig
from prlhf.data import prepare
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError

ATOMS = st.sampled_from(
    [None, True, 0, 12.0, 1.5, float("nan"), 2**70, "", " ", "x", "Why?", "Why? Yes", "\ud83d", "generic", " ann", "[{",
     '[{"role":"user","content":"Hi"}]', "none", [], {}, [None], ["a"], {"a": [1]}]
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", "human", "", None]),
        "content": st.sampled_from(["Hi", "So", "", None, [{"type": "text", "text": "x"}], [1]]),
    }
)
VALUE = st.one_of(ATOMS, st.lists(MESSAGE, max_size=4))
ROW = st.one_of(
    st.fixed_dictionaries(
        {"prompt": VALUE, "chosen": VALUE, "rejected": VALUE, "user_id": st.one_of(st.just("ann"), ATOMS)},
        optional={"id": ATOMS, "user_text": ATOMS},
    ),
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["Why?", "Q"]),
            "chosen": st.sampled_from(["a", "Why? b"]),
            "rejected": st.sampled_from(["c", "Why? d"]),
            "user_id": st.sampled_from(["ann", "bo", 3, 3.0]),
        },
        optional={"id": st.sampled_from(["q", "q/ann", 1])},
    ),
    ATOMS,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=6), st.sampled_from(["strict", "skip"]))
def test_no_rows_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], bad_rows: Any) -> None:
    folder: Path = tmp_path_factory.mktemp("any")
    (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        manifest = prepare(PrepConfig(dataset=str(folder / "raw.jsonl"), out=folder / "out", bad_rows=bad_rows))
    except PrlhfError as error:
        line = str(error)
        assert [path.name for path in folder.iterdir()] == ["raw.jsonl"], line
        return
    data = read_prepared(folder / "out")
    dropped = sum(manifest["dropped"].values())
    assert len(data.train) + len(data.eval) + dropped == manifest["read"]["all"]
    ids = [row.id for row in [*data.train, *data.eval]]
    assert len(set(ids)) == len(ids)
    assert all(row.chosen != row.rejected for row in data.train)
