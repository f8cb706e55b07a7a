"""Former versions of adapted users: what is kept, that they come back exactly, and that forgetting reaches them."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapt import adapt, table, write_choices

import prlhf
from prlhf.adapt.forget import forget_user
from prlhf.adapt.listing import list_users
from prlhf.adapt.versions import KEPT
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import load_policy


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


def grow(run: Path, tmp_path: Path, user: str, *counts: int) -> list[Any]:
    """Learn a user again and again, from so many choices in all; the gates of all users after each time."""
    found = []
    for count in counts:
        adapt(run, write_choices(tmp_path / "grow.jsonl", {user: count}))
        found.append(table(run))
    return found


def kept(run: Path, user: str) -> list[tuple[int, int]]:
    return [(one["version"], one["choices"]) for one in list_users(run, user)["versions"]]


def test_each_adaptation_is_a_version_that_comes_back_exactly(run: Path, tmp_path: Path) -> None:
    rows = grow(run, tmp_path, "new", 2, 5, 9)
    assert kept(run, "new") == [(1, 2), (2, 5), (3, 9)]
    known = list_users(run, "new")["adapted"]
    found = prlhf.roll_back(run, "new")
    assert (found.version, found.choices, found.undone) == (2, 5, 4)
    assert torch.equal(table(run), rows[1])
    assert list_users(run)["adapted"] != known
    assert list_users(run)["adapted"][0]["choices"] == 5
    assert torch.equal(grow(run, tmp_path, "new", 9)[0], rows[2])  # the other four count again
    assert list_users(run, "new")["adapted"] == known
    assert prlhf.roll_back(run, "new", 1).choices == 2
    assert torch.equal(table(run), rows[0])
    assert kept(run, "new") == [(1, 2)]
    assert torch.equal(grow(run, tmp_path, "new", 5)[0], rows[1])


def test_a_trained_user_is_as_trained_again(run: Path, tmp_path: Path) -> None:
    before = table(run)
    grow(run, tmp_path, "bob", 2, 4)
    found = prlhf.roll_back(run, "bob", 0)
    assert (found.version, found.choices, found.undone) == (0, 0, 4)
    assert torch.equal(table(run), before)
    assert list_users(run)["adapted"] == []
    with pytest.raises(PrlhfError, match="'bob' was not adapted; there is nothing to put back"):
        prlhf.roll_back(run, "bob")
    other = grow(run, tmp_path, "bob", 2)[0]
    assert not torch.equal(other, before)


def test_before_the_first_choice_a_new_user_is_unknown(run: Path, tmp_path: Path) -> None:
    grow(run, tmp_path, "zebrafish", 3)
    found = prlhf.roll_back(run, "zebrafish")
    assert (found.version, found.undone, found.at) == (0, 3, None)
    assert load_policy(run, "cpu").user_ids == ["ann", "bob", "cat"]
    assert not any(b"zebrafish" in path.read_bytes() for path in run.rglob("*") if path.is_file())
    with pytest.raises(PrlhfError, match="user 'zebrafish' is unknown"):
        prlhf.roll_back(run, "zebrafish")


def test_the_same_choices_again_are_no_version(run: Path, tmp_path: Path) -> None:
    grow(run, tmp_path, "new", 3, 3, 3)
    assert kept(run, "new") == [(1, 3)]


def test_their_number_is_bounded(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT == 8
    monkeypatch.setattr("prlhf.adapt.versions.KEPT", 3)
    grow(run, tmp_path, "new", 1, 2, 3, 4, 5)
    grow(run, tmp_path, "other", 1)
    assert kept(run, "new") == [(3, 3), (4, 4), (5, 5)]
    assert kept(run, "other") == [(1, 1)]
    with pytest.raises(PrlhfError, match=r"no former version 2 of 'new' is kept; give one of these: 0, 3, 4$"):
        prlhf.roll_back(run, "new", 2)
    assert prlhf.roll_back(run, "new", 3).choices == 3


def test_dates(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(run, tmp_path, "new", 1, 2)
    dates = [one.at for one in prlhf.users(run, "new").versions]
    assert dates == sorted(dates, key=str)
    assert all(date and date.endswith("+00:00") for date in dates)
    assert prlhf.users(run, "ann").versions == []
    with pytest.raises(PrlhfError, match="user 'nwe' is unknown"):
        prlhf.users(run, "nwe")


def test_forgetting_reaches_all_versions(run: Path, tmp_path: Path) -> None:
    rows = [row[3].numpy().tobytes() for row in grow(run, tmp_path, "new", 2, 5, 9)]
    assert all(row in (run / "model/adapted.sqlite").read_bytes() for row in rows)
    forget_user(run, "new")
    for path in run.rglob("*"):
        assert path.is_dir() or not any(row in path.read_bytes() for row in rows)


def test_somebody_who_was_adapted_before_there_were_versions(run: Path, tmp_path: Path) -> None:
    rows = grow(run, tmp_path, "new", 2)
    with sqlite3.connect(run / "model/adapted.sqlite") as database:
        database.execute("DROP TABLE versions")
    database.close()
    assert kept(run, "new") == [(1, 2)]
    assert prlhf.users(run, "new").versions[0].at is None
    grow(run, tmp_path, "new", 4)
    assert kept(run, "new") == [(1, 2), (2, 4)]
    prlhf.roll_back(run, "new")
    assert torch.equal(table(run), rows[0])
    with sqlite3.connect(run / "model/adapted.sqlite") as database:
        database.execute("DROP TABLE versions")
    database.close()
    forget_user(run, "new")


def test_a_version_that_was_changed_is_noticed(run: Path, tmp_path: Path) -> None:
    before = grow(run, tmp_path, "new", 2, 4)[1]
    with sqlite3.connect(run / "model/adapted.sqlite") as database:
        database.execute("UPDATE versions SET choices = 3 WHERE number = 1")
    database.close()
    with pytest.raises(PrlhfError, match=r"adapted\.sqlite is damaged: a line of versions differs"):
        prlhf.roll_back(run, "new")
    assert torch.equal(table(run), before)
