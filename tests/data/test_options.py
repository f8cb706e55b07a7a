"""Every key of prep for every data set: those it does not read are refused, never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prlhf.config import PrepConfig, resolve
from prlhf.data import CUSTOM, READS, check_options, prepare
from prlhf.errors import PrlhfError

GIVEN: dict[str, Any] = {
    "top_users": 10, "simulate": "length", "minority": 0.3, "users": 3, "comparisons": 2, "noise": 0.4, "reveal": 1,
    "bad_rows": "skip", "eval_fraction": 0.2, "unseen_fraction": 0.1, "prefs": "order", "judging_users": 5,
    "text": True, "columns": {"id": "none"}, "split": "train", "config": "default", "revision": "main",
}  # fmt: skip
EVERYWHERE = {"dataset", "out", "seed", "source"}
# As the issue and the guide have it, written out: data set -> what it reads.
TABLE = {
    "demo": {"users", "comparisons", "minority"},
    "demo-profiles": {"comparisons"},
    "demo-crowd": {"users", "comparisons", "noise", "reveal", "unseen_fraction"},
    "tldr": {"top_users", "simulate", "minority", "bad_rows"},
    "prism": {"prefs", "unseen_fraction", "eval_fraction", "judging_users", "bad_rows"},
    "psoups": {"eval_fraction", "text", "bad_rows"},
    CUSTOM: {"bad_rows", "columns", "eval_fraction", "split", "config", "revision"},
}


def test_the_table_is_whole() -> None:
    assert {name: set(keys) for name, keys in READS.items()} == TABLE
    assert set(GIVEN) == set(PrepConfig.model_fields) - EVERYWHERE
    assert set(GIVEN) == {key for keys in TABLE.values() for key in keys}


@pytest.mark.parametrize("key", GIVEN)
@pytest.mark.parametrize("name", TABLE)
def test_each_key_is_read_or_refused(name: str, key: str) -> None:
    config = PrepConfig(dataset="some/where" if name == CUSTOM else name, **{key: GIVEN[key]})
    if key in TABLE[name]:
        check_options(config)
        return
    with pytest.raises(PrlhfError, match=f"^{key} = .* is not an option of .*{name}.*; leave it out: it belongs to "):
        check_options(config)


@pytest.mark.parametrize(("key", "value"), [("noise", 0.0), ("simulate", "none"), ("top_users", 10)])
def test_a_default_that_was_given_is_refused_too(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match=f"{key} = .* is not an option of the data set 'demo'"):
        prepare(resolve(PrepConfig, {key: value}, {"dataset": "demo", "out": tmp_path / "out"}))
    assert list(tmp_path.iterdir()) == []


def test_a_minority_takes_simulated_users(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match=r"minority = 0.3 is of simulated users; add --simulate length"):
        prepare(PrepConfig(dataset="tldr", minority=0.3, source=str(tmp_path)))
