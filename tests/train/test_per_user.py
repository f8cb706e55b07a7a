"""One adapter per user: as many vanilla runs, resumed as one, and generating as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prlhf.config import GenerateConfig
from prlhf.dataset import Prepared, User, read_prepared, write_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.generate.run import generate
from prlhf.model.per_user import is_per_user, read_per_user, run_of
from prlhf.progress import Silent
from prlhf.responses import Response, read_responses
from prlhf.train import per_user
from prlhf.train.per_user import only, train_per_user
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
SEEN = ["ann", "bob", "cat"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "adapters"
    train_per_user(make_config(folder, max_steps=3))
    return folder


def written(tmp_path: Path, run: Path, name: str = "out.jsonl", **options: Any) -> list[Response]:
    values = {"out": tmp_path / name, "max_new_tokens": 6, "max_prompts": 2, "device": "cpu", "temperature": 0}
    generate(run, GenerateConfig.model_validate(values | options))
    return read_responses(tmp_path / name)


def adapter(run: Path) -> dict[str, Any]:
    return load_file(run / "model/adapter_model.safetensors")


def test_every_seen_user_has_a_run_of_their_own(adapters: Path, prepared: Path) -> None:
    assert is_per_user(adapters)
    assert read_per_user(adapters).users == SEEN
    assert sorted(path.name for path in (adapters / "users").iterdir()) == ["1", "2", "3"]
    whole = read_prepared(prepared)
    for index, user in enumerate(SEEN, start=1):
        data = read_prepared(run_of(adapters, index) / "data")
        assert [row.id for row in data.train] == [row.id for row in whole.train if row.user_id == user]
        assert [row.id for row in data.eval] == [row.id for row in whole.eval if row.user_id == user]
        assert {row.user_index for row in [*data.train, *data.eval]} == {1}
        about = json.loads((run_of(adapters, index) / "model/prlhf.json").read_text())["train"]
        assert (about["user_model"], about["user_tokens"], about["user_text"]) == ("uniform", 0, False)
    weights = [adapter(run_of(adapters, index)) for index in (1, 2, 3)]
    assert any((weights[0][key] != weights[1][key]).any() for key in weights[0])


def test_results_are_the_runs_own(adapters: Path) -> None:
    said = json.loads((adapters / "results.json").read_text())
    runs = [json.loads((run_of(adapters, index) / "results.json").read_text()) for index in (1, 2, 3)]
    expected = {user: run["eval"]["accuracy_by_user"][user] for user, run in zip(SEEN, runs, strict=True)}
    assert said["eval"]["accuracy_by_user"] == expected
    assert said["eval"]["accuracy_macro"] == pytest.approx(sum(expected.values()) / 3)
    assert said["eval"]["accuracy_worst_tenth"] == min(expected.values())
    assert (said["users"], said["steps"]) == (3, 9)
    assert said["loss"] == pytest.approx(sum(run["loss"] for run in runs) / 3)


def test_a_user_without_held_out_comparisons_is_no_part_of_the_evaluation(
    tmp_path: Path, make_config: MakeConfig, prepared: Path
) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "d", replace(data, eval=[row for row in data.eval if row.user_id != "bob"]))
    said = train_per_user(make_config(tmp_path / "r", dataset=str(tmp_path / "d"), max_steps=1))
    assert said["eval"]["accuracy_by_user"].keys() == {"ann", "cat"}
    write_prepared(tmp_path / "e", replace(data, eval=[]))
    assert "eval" not in train_per_user(make_config(tmp_path / "s", dataset=str(tmp_path / "e"), max_steps=1))


def test_only_renumbers_and_keeps_nobody_else(prepared: Path) -> None:
    data = read_prepared(prepared)
    cat = next(user for user in data.users if user.id == "cat")
    mine = only(data, cat)
    assert mine.users == [replace(cat, user_index=1)]
    assert mine.user_ids == ["cat"]
    assert len(mine.train) == cat.train_count
    assert mine.judging == mine.prompts == []


# ---- stopped and resumed ----


class StopAtUser(Silent):
    """Ends training when the n-th user's turn comes."""

    def __init__(self, user: int, error: BaseException) -> None:
        self.left, self.error = user, error

    def note(self, line: str) -> None:
        self.left -= line.startswith("user ")
        if self.left == 0:
            raise self.error


def test_resumed_is_uninterrupted(tmp_path: Path, make_config: MakeConfig, adapters: Path) -> None:
    config = make_config(tmp_path / "r", max_steps=3)
    with pytest.raises(ZeroDivisionError):
        train_per_user(config, progress=StopAtUser(3, ZeroDivisionError()))
    assert not (tmp_path / "r/results.json").exists()
    before = (run_of(tmp_path / "r", 2) / "model/adapter_model.safetensors").stat().st_mtime_ns
    train_per_user(config, resume=True)
    assert (run_of(tmp_path / "r", 2) / "model/adapter_model.safetensors").stat().st_mtime_ns == before
    for index in (1, 2, 3):
        mine, theirs = adapter(run_of(tmp_path / "r", index)), adapter(run_of(adapters, index))
        assert all((mine[key] == theirs[key]).all() for key in theirs)


def test_ctrl_c_within_a_run_names_the_whole(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **options: Any) -> Any:
        raise Interrupted("stopped after step 1; continue with: another folder")

    monkeypatch.setattr(per_user, "train", stop)
    with pytest.raises(Interrupted, match=r"stopped at user 1 of 3; continue with: prlhf train --resume --out .*/r$"):
        train_per_user(make_config(tmp_path / "r"))


def test_a_finished_one_is_not_trained_again(
    adapters: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_user, "train", None)
    said = train_per_user(make_config(adapters, max_steps=3), resume=True)
    assert said == json.loads((adapters / "results.json").read_text())


def test_what_is_refused_leaves_nothing_behind(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, adapters: Path, trained: Path
) -> None:
    data = read_prepared(prepared)
    crowd = [User(f"u{i}", i, "", "", 1, 0, True) for i in range(1, 52)]
    rows = [replace(data.train[0], user_id=user.id, user_index=user.user_index) for user in crowd]
    write_prepared(tmp_path / "d", Prepared(rows, [], crowd, {}))
    out = tmp_path / "r"
    refused = [
        (make_config(out, dataset=str(tmp_path / "d")), r"has 51 users; one adapter per user is for at most 50; use"),
        (make_config(out, objective="rm"), "not by objective = rm"),
        (make_config(out, model=str(tmp_path)), "is not a model"),
        (make_config(out, max_prompt_tokens=None, max_tokens=8), "the prompt of"),
        (make_config(adapters), "already holds a run; continue with --resume"),
        (make_config(trained), "already holds a run"),
    ]
    for config, message in refused:
        with pytest.raises(PrlhfError, match=message):
            train_per_user(config)
    assert not out.exists()
    for folder, message in ((out, "holds no run to resume"), (trained, "holds no adapters per user")):
        with pytest.raises(PrlhfError, match=message):
            train_per_user(make_config(folder), resume=True)
    with pytest.raises(PrlhfError, match="was started with max_steps = 3, not 4"):
        train_per_user(make_config(adapters, max_steps=4), resume=True)


# ---- generating ----


def test_each_user_is_written_for_by_their_own_adapter(tmp_path: Path, adapters: Path, prepared: Path) -> None:
    rows = written(tmp_path, adapters, users="seen")
    assert [(row.user_id, row.user_index) for row in rows] == [("ann", 1), ("bob", 2), ("cat", 3)] * 2
    for index, user in enumerate(SEEN, start=1):
        alone = written(tmp_path, run_of(adapters, index), f"{user}.jsonl", users=user, dataset=str(prepared))
        assert [row.response for row in rows if row.user_id == user] == [row.response for row in alone]
    assert len({row.response for row in rows}) > 2  # the adapters differ in what they write


def test_the_base_writes_for_those_without_an_adapter(tmp_path: Path, adapters: Path) -> None:
    rows = written(tmp_path, adapters, users="zoe,generic,ann")
    base = written(tmp_path, adapters, "base.jsonl", baseline="base")
    for user in ("zoe", "generic"):
        assert [row.response for row in rows if row.user_id == user] == [row.response for row in base]
    assert [row.response for row in rows if row.user_id == "ann"] != [row.response for row in base]


def test_full_weights_per_user(tmp_path: Path, make_config: MakeConfig, adapters: Path, prepared: Path) -> None:
    train_per_user(make_config(tmp_path / "full", full_finetune=True, max_steps=2))
    rows = written(tmp_path, tmp_path / "full", users="bob,generic")
    bob = written(tmp_path, run_of(tmp_path / "full", 2), "bob.jsonl", users="bob", dataset=str(prepared))
    base = written(tmp_path, adapters, "base.jsonl", baseline="base")
    assert [row.response for row in rows if row.user_id == "bob"] == [row.response for row in bob]
    assert [row.response for row in rows if row.user_id == "generic"] == [row.response for row in base]


def test_a_killed_generation_goes_on(tmp_path: Path, adapters: Path) -> None:
    whole = written(tmp_path, adapters, temperature=1.0)
    some = [row for row in whole if row.user_id in ("ann", "generic")]
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["user_id"] in ("ann", "generic"))
    (tmp_path / "again.jsonl.partial").write_text(kept)
    assert written(tmp_path, adapters, "again.jsonl", temperature=1.0, batch_size=1) == whole
    assert len(whole) == 8 > len(some) == 4


def test_other_adapters_are_not_mixed_in(tmp_path: Path, adapters: Path, make_config: MakeConfig) -> None:
    rows = written(tmp_path, adapters)
    train(make_config(tmp_path / "r", max_steps=1))
    with pytest.raises(PrlhfError, match="holds responses with run = "):
        written(tmp_path, tmp_path / "r")
    assert read_responses(tmp_path / "out.jsonl") == rows


@pytest.mark.parametrize("damage", ["per_user.json", "users/2/model/adapter_model.safetensors"])
def test_damaged_adapters(tmp_path: Path, adapters: Path, damage: str) -> None:
    copy = Path(shutil.copytree(adapters, tmp_path / "copy"))
    (copy / damage).write_bytes(b"{")
    with pytest.raises(PrlhfError, match=damage.rpartition("/")[2]):
        written(tmp_path, copy)
    assert not (tmp_path / "out.jsonl").exists()


def test_data_and_runs_that_moved(tmp_path: Path, make_config: MakeConfig, prepared: Path, adapters: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(prepared, old)
    with pytest.raises(ZeroDivisionError):
        train_per_user(
            make_config(tmp_path / "r", max_steps=3, dataset=str(old)), progress=StopAtUser(3, ZeroDivisionError())
        )
    old.rename(new)
    (tmp_path / "r").rename(tmp_path / "s")
    config = make_config(tmp_path / "s", max_steps=3, dataset=str(old))
    with pytest.raises(
        PrlhfError, match=rf"the data set of .*/s is gone from {old}; give its new folder with --dataset"
    ):
        train_per_user(config, resume=True)
    train_per_user(config.model_copy(update={"dataset": str(new)}), resume=True)
    for index in (1, 2, 3):
        mine, theirs = adapter(run_of(tmp_path / "s", index)), adapter(run_of(adapters, index))
        assert all((mine[key] == theirs[key]).all() for key in theirs)
    assert read_per_user(tmp_path / "s").dataset == str(new)
    assert written(tmp_path, tmp_path / "s")  # finds its prompts
