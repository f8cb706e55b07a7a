"""What users cost who come later: the same among a thousand as among a million, and in any number at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapt import adapt, table, write_choices

from prlhf.adapt.forget import forget_user
from prlhf.adapt.listing import list_users
from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.files import sha256
from prlhf.model.base import load_base
from prlhf.model.checkpoint import Policy, assemble, digest, load_policy, save_policy
from prlhf.model.user_prior import UserPrior

PROC = Path("/proc/self")
LINUX = pytest.mark.skipif(not (PROC / "io").exists(), reason="counts bytes and memory as Linux does")


def moved() -> tuple[int, int]:
    """Bytes that this process has read and written."""
    lines = dict(line.split(": ") for line in (PROC / "io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def most_memory() -> int:
    """The most memory since the last `forget_memory`, in KiB."""
    return int((PROC / "status").read_text().split("VmHWM:")[1].split()[0])


def forget_memory() -> None:
    (PROC / "clear_refs").write_text("5")


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


def large(folder: Path, gated: Path, users: int) -> Path:
    """A run of so many users, with gates that nobody trained and a prior."""
    about = json.loads((gated / "model/prlhf.json").read_text())
    config = TrainConfig.saved(about["train"])
    policy: Policy = assemble(load_base(about["base"]), config, [f"u{i}" for i in range(1, users + 1)], {})
    folder.mkdir()
    save_policy(policy, folder)
    UserPrior(torch.zeros(4), torch.eye(4)).save(folder)
    return folder


@LINUX
def test_the_bytes_of_a_new_user_do_not_grow_with_users(gated: Path, tmp_path: Path) -> None:
    """From two thousand to a million: at most two blocks of the table more are read, and 65 bytes of sums a block."""
    read, written = {}, {}
    for name in ("first", "second"):
        write_choices(tmp_path / f"{name}.jsonl", {name: 2})
    for users in (2_000, 1_000_000):
        run = large(tmp_path / str(users), gated, users)
        adapt(run, tmp_path / "first.jsonl")
        before = moved()
        adapt(run, tmp_path / "second.jsonl")
        read[users], written[users] = (after - at for after, at in zip(moved(), before, strict=True))
        assert load_policy(run, "cpu", users=["second", "u7"]).index_of() == {"u7": 7, "second": users + 2}
    size = 4 * 4 * 1_000_000
    assert read[1_000_000] - read[2_000] < 2 * 2**20 + 2 * 65 * size / 2**20 < size / 4
    assert abs(written[1_000_000] - written[2_000]) < 2**16


def test_many_at_once_are_each_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In lots, which are written together at the end."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    choices = write_choices(tmp_path / "c.jsonl", {f"n{i}": 1 + i % 3 for i in range(12)})
    whole = adapt(run, choices)
    monkeypatch.setattr("prlhf.adapt.run.AT_ONCE", 4)
    lots = adapt(other, choices)
    assert [user["user_id"] for user in lots["users"]] == [f"n{i}" for i in range(12)]
    assert (lots["choices"], lots["passes"]) == (whole["choices"], whole["passes"])
    torch.testing.assert_close(table(other), table(run), atol=1e-5, rtol=1e-4)


@LINUX
@pytest.mark.slow
def test_ten_thousand_at_once(gated: Path, tmp_path: Path) -> None:
    """Memory does not grow with them but for their texts and what is reported."""
    most = {}
    for users in (2_000, 10_000):
        run = Path(shutil.copytree(gated, tmp_path / str(users)))
        choices = write_choices(tmp_path / f"{users}.jsonl", {f"n{i}": 1 for i in range(users)})
        forget_memory()
        found = adapt(run, choices, method="linear")
        most[users] = most_memory()
        assert [user["user_index"] for user in found["users"]] == list(range(4, users + 4))
        del found
    assert most[10_000] - most[2_000] < 100 * 2**10


def test_a_kill_while_users_are_written_leaves_those_of_before(run: Path, tmp_path: Path) -> None:
    adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 3}))
    before, known = table(run), list_users(run)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nimport torch\n"
        "from prlhf.model.later_users import LaterRow, opened, put_later\n"
        "with opened(Path(sys.argv[1]), write=True) as database:\n"
        "    database.execute('PRAGMA cache_size = 1')\n"  # so that pages are written before the end
        "    put_later(database, (LaterRow(4 + i, torch.ones(4), f'x{i}') for i in range(500)))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = run / "model/adapted.sqlite"
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.with_name("adapted.sqlite-journal").exists()
    assert torch.equal(table(run), before)
    assert list_users(run) == known
    forget_user(run, "new")
    assert os.listdir(run / "model").count("adapted.sqlite-journal") == 0


def test_an_error_while_users_are_learned_changes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 3}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr("prlhf.adapt.run.AT_ONCE", 2)
    rows = [json.loads(line) for line in write_choices(tmp_path / "d.jsonl", {"one": 2, "two": 2}).open()]
    rows[3]["prompt"] = "long " * 1000
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(PrlhfError, match="do not fit"):
        adapt(run, tmp_path / "d.jsonl")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_was_written_is_told_from_what_was_before(run: Path, tmp_path: Path) -> None:
    """For responses and judgements that are kept by the run that made them."""
    found = [digest([run])]
    for name in ("one", "two"):
        adapt(run, write_choices(tmp_path / "c.jsonl", {name: 2}))
        found.append(digest([run]))
    forget_user(run, "one")
    assert len({*found, digest([run])}) == 4


def as_first_version(run: Path) -> None:
    """Change a run as the first version of adapt would have left it: ids and rows among those of trained users."""
    model = run / "model"
    policy, about = load_policy(run, "cpu"), json.loads((model / "prlhf.json").read_text())
    rows = {"gates.offsets.weight": table(run)}
    (model / "users.json").write_text(json.dumps({"ids": policy.user_ids, "texts": policy.user_texts}))
    save_file(load_file(model / "user_model.safetensors") | rows, model / "user_model.safetensors")
    about["sha256"]["user_model.safetensors"] = sha256(model / "user_model.safetensors")
    (model / "prlhf.json").write_text(json.dumps(about))
    with sqlite3.connect(model / "adapted.sqlite") as database:
        for name in ("rows", "forgotten", "state"):
            database.execute(f"DROP TABLE {name}")
        for name in ("users", "choices"):
            database.execute(f"ALTER TABLE {name} DROP COLUMN sum")
    database.close()


def test_a_run_that_the_first_version_adapted(run: Path, tmp_path: Path) -> None:
    adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 3}))
    before, known = table(run), list_users(run)
    as_first_version(run)
    assert list_users(run) == known
    assert torch.equal(table(run), before)
    found = adapt(run, write_choices(tmp_path / "d.jsonl", {"new": 4, "late": 2}))
    assert [(user["user_index"], user["choices"]) for user in found["users"]] == [(4, 4), (5, 2)]
    forget_user(run, "new")
    assert load_policy(run, "cpu").index_of() == {"ann": 1, "bob": 2, "cat": 3, "late": 5}


@pytest.mark.parametrize("what", ["rows SET numbers = x'00'", "rows SET id = 'x'", "users SET gain = 9.0",
                                  "choices SET margin = 9.0"])  # fmt: skip
def test_a_line_that_was_changed_is_noticed(run: Path, tmp_path: Path, what: str) -> None:
    adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 2}))
    with sqlite3.connect(run / "model/adapted.sqlite") as database:
        database.execute(f"UPDATE {what}")
    database.close()
    with pytest.raises(PrlhfError, match=r"adapted\.sqlite is damaged"):
        adapt(run, write_choices(tmp_path / "d.jsonl", {"new": 3, "x": 1}))


@pytest.mark.parametrize("many", [1000, 2])
def test_some_of_many_are_loaded_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., Any], many: int
) -> None:
    """Few trained users are loaded whole, and so are not those who came later."""
    monkeypatch.setattr("prlhf.model.checkpoint.MANY", many)
    monkeypatch.setattr("prlhf.model.user_store.MANY", many)
    policy = load_policy(run, "cpu")
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    save_policy(policy, run / "model")
    adapt(run, write_choices(tmp_path / "c.jsonl", {"one": 2, "bob": 2, "two": 2}))
    whole, some = load_policy(run, "cpu"), load_policy(run, "cpu", users=["bob", "two"])
    assert some.index_of() == {"bob": 2, "two": 5} | ({"ann": 1, "cat": 3} if many == 1000 else {})
    for users in ([2], [5], [0, 5, 2]):
        one, other = (each.model.users.gates(torch.tensor(users)) for each in (some, whole))  # type: ignore[misc]
        assert torch.equal(one, other)
