"""New users from choices: what is written of them, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prlhf.adapt.forget import forget_user
from prlhf.adapt.listing import list_users
from prlhf.adapt.run import adapt_run
from prlhf.config import AdaptConfig
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import load_policy
from prlhf.model.rewards import load_rewards
from prlhf.train.run import train

WHAT = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]


def write_choices(path: Path, users: dict[str, int], text: str = "") -> Path:
    """So many choices of each user, of the longer response."""
    rows = [
        {
            "prompt": f"POST: my {user} found {WHAT[i % 8]}.\nTL;DR:",
            "chosen": f" {user} found {WHAT[i % 8]}. my boss lost {WHAT[i // 8 % 8]}.",
            "rejected": f" {WHAT[i % 8]}.",
            "user_id": user,
        } | ({"user_text": text} if text else {})
        for user, count in users.items()
        for i in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gated, tmp_path / "run"))


def adapt(run: Path, choices: Path, **settings: Any) -> dict[str, Any]:
    return adapt_run(run, AdaptConfig(choices=choices, device="cpu", **settings))


def table(run: Path) -> Tensor:
    """The gates of all users of a run, less 1."""
    weight: Tensor = load_policy(run, "cpu").model.users.gates.offsets.weight  # type: ignore[union-attr,assignment]
    return weight.detach()


def values(run: Path, users: list[int]) -> Any:
    trained, rewards = load_rewards(run, "cpu")
    rows = [trained.encoder().comparison(row) for row in read_prepared(Path(trained.config.dataset)).eval[:2]]
    with torch.no_grad():
        return [rewards(rows, [user, user]) for user in users]


def test_a_new_user_gets_the_next_index_and_nobody_else_changes(run: Path, tmp_path: Path) -> None:
    before, scored = {path.name: path.read_bytes() for path in (run / "model").iterdir()}, values(run, [0, 1, 2, 3])
    rows = table(run)
    found = adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 8}, "she flies"))
    assert load_policy(run, "cpu").index_of() == {"ann": 1, "bob": 2, "cat": 3, "new": 4}
    assert load_policy(run, "cpu").user_texts["new"] == "she flies"
    after = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"adapted.sqlite", "user_prior.safetensors", "prlhf.json"}
    assert torch.equal(table(run)[:3], rows)
    assert table(run)[3].abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(values(run, [0, 1, 2, 3]), scored, strict=True))
    (user,) = found["users"]
    assert user | {"gain": 0, "uncertainty": 0} == {
        "user_id": "new", "user_index": 4, "new": True, "choices": 8, "told_apart": "unsure", "gain": 0,
        "uncertainty": 0,
    }  # fmt: skip
    assert list_users(run)["adapted"] == found["users"]


def test_further_choices_are_as_all_at_once(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    adapt(run, write_choices(tmp_path / "few.jsonl", {"new": 3}))
    everything = write_choices(tmp_path / "all.jsonl", {"new": 9})
    further, once = adapt(run, everything), adapt(other, everything)
    assert further["choices"] == 6  # the first three are known
    assert further["users"][0]["choices"] == once["users"][0]["choices"] == 9
    torch.testing.assert_close(table(run), table(other), atol=1e-4, rtol=1e-3)


def test_a_trained_user_goes_on_from_their_row(run: Path, tmp_path: Path) -> None:
    before = table(run)
    found = adapt(run, write_choices(tmp_path / "c.jsonl", {"bob": 5}))
    assert (found["users"][0]["user_index"], found["users"][0]["new"]) == (2, False)
    after = table(run)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert 0 < (after[1] - before[1]).norm() < before[1].norm()


def test_two_at_a_time_do_not_lose_each_other(run: Path, tmp_path: Path) -> None:
    files = [write_choices(tmp_path / f"{user}.jsonl", {user: 2}) for user in ("one", "two", "three")]
    code = "import sys; from pathlib import Path; from prlhf.adapt.run import adapt_run; from prlhf.config import *; "
    code += "adapt_run(Path(sys.argv[1]), AdaptConfig(choices=sys.argv[2], device='cpu'))"
    running = [subprocess.Popen([sys.executable, "-c", code, str(run), str(file)]) for file in files]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert {"ann", "bob", "cat", "one", "two", "three"} == set(load_policy(run, "cpu").user_ids)


def test_a_run_beside_it(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 2, "old": 2}), out=tmp_path / "beside", user="new")
    assert found["run"] == str(tmp_path / "beside")
    assert load_policy(tmp_path / "beside", "cpu").user_ids == ["ann", "bob", "cat", "new"]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("many", [1000, 3])
def test_a_forgotten_user_is_in_no_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """In users.json and in users.sqlite; the indices of others stay, and nobody gets the empty one."""
    monkeypatch.setattr("prlhf.model.user_store.MANY", many)
    monkeypatch.setattr("prlhf.model.checkpoint.MANY", many)
    adapt(run, write_choices(tmp_path / "c.jsonl", {"zebrafish": 4}, "zebrafish swims"))
    adapt(run, write_choices(tmp_path / "d.jsonl", {"other": 3}))
    row = table(run)[3].numpy().tobytes()
    bearing = [path for path in run.rglob("*") if path.is_file() and b"zebrafish" in path.read_bytes()]
    assert [path.name for path in bearing] == ["adapted.sqlite"]
    forget_user(run, "zebrafish")
    forget_user(run, "bob")
    for path in run.rglob("*"):
        assert path.is_dir() or (b"zebrafish" not in path.read_bytes() and row not in path.read_bytes())
        assert path.is_dir() or b'"bob"' not in path.read_bytes()
    adapt(run, write_choices(tmp_path / "e.jsonl", {"late": 1}))
    assert load_policy(run, "cpu").index_of() == {"ann": 1, "cat": 3, "other": 5, "late": 6}
    assert list_users(run)["forgotten"] == 2
    with pytest.raises(PrlhfError, match="unknown"):
        forget_user(run, "bob")


def test_everybody_is_forgotten(run: Path, tmp_path: Path) -> None:
    """Samples of what was written for them too; a new user gets a new index all the same."""
    samples = [{"user_id": user, "response": f"for {user}"} for user in ("ann", "bob", "cat", "generic")]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (run / "report.html").write_text("a page with ann")
    for user in ("ann", "bob", "cat"):
        forget_user(run, user)
    assert not (run / "report.html").exists()
    assert [json.loads(line)["user_id"] for line in (run / "samples.jsonl").read_text().splitlines()] == ["generic"]
    assert list_users(run) == {"run": str(run), "trained": 0, "forgotten": 3, "adapted": []}
    assert load_policy(run, "cpu").index_of() == {}


@pytest.mark.parametrize(
    "changes", [{"user_model": "cluster"}, {"user_in": "prompt"}, {"objective": "rm", "user_in": "both"}]
)
def test_other_user_models(tmp_path: Path, make_config: Callable[..., Any], changes: dict[str, Any]) -> None:
    run = tmp_path / "run"
    train(make_config(run, **{"user_in": "adapter", "lora_r": 4} | changes))
    found = adapt(run, write_choices(tmp_path / "c.jsonl", {"new": 4}))
    assert found["users"][0]["user_index"] == 4
    generic, new, known = values(run, [0, 4, 1])
    assert not torch.equal(new, generic)
    assert not torch.equal(new, known)


def test_a_run_without_users_is_refused(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    train(make_config(tmp_path / "run", user_model="uniform"))
    with pytest.raises(PrlhfError, match="nothing of each user's own"):
        adapt(tmp_path / "run", write_choices(tmp_path / "c.jsonl", {"new": 4}))
