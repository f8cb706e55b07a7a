"""Four readings of the same held-out comparisons, on a hand-made scorer and on a trained run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from prlhf.config import JudgeConfig
from prlhf.dataset import Prepared, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.judge import accuracy
from prlhf.judge.accuracy import judge_checkpoint, shuffled, with_interval
from prlhf.model.rewards import Scored
from prlhf.train.run import train
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]


def config(tmp_path: Path, **options: Any) -> JudgeConfig:
    values = {"out": tmp_path / "judged", "bootstrap": 50, "device": "cpu"}
    return JudgeConfig.model_validate(values | options)


@given(st.integers(2, 30), st.lists(st.integers(0, 30), max_size=40), st.integers(0, 5))
def test_nobody_stands_in_for_themselves(known: int, users: list[int], seed: int) -> None:
    users = [min(user, known) for user in users]
    others = shuffled(users, range(1, known + 1), seed)
    assert others == shuffled(users, range(1, known + 1), seed)
    for user, other in zip(users, others, strict=True):
        assert other == 0 if user == 0 else other != user and 1 <= other <= known


def test_every_other_user_stands_in() -> None:
    assert set(shuffled([2] * 200, [1, 2, 3, 4], 0)) == {1, 3, 4}
    assert set(shuffled([2] * 200, [2, 5, 7], 0)) == {5, 7}  # users who were forgotten have left indices behind


def test_an_interval_by_hand() -> None:
    """Margins 1, -1 and 0 of the four: (1 + 0 + 1/2) / 3; comparison 1 is not chosen."""
    scored = [Scored(m, 0.0) for m in (1.0, 9.0, -1.0, 0.0)]
    found = with_interval(["a", "a", "a", "a"], scored, [0, 2, 3], JudgeConfig(bootstrap=20))
    assert found is not None
    assert found["rate"] == pytest.approx(0.5)
    assert found["comparisons"] == 3
    assert with_interval(["a"], scored[:1], [], JudgeConfig(bootstrap=20)) is None


def test_readings_of_a_hand_made_model(
    tmp_path: Path, trained: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer that is right as users 1 and 2, wrong as 3, undecided as 0. Two comparisons each of ann 1, bob 2,
    cat 3 and zoe 0; shuffled puts other seen users in their places."""
    asked: list[list[int]] = []

    def by_index(rewards: Any, data: Any, users: Sequence[int], *rest: Any) -> list[Scored]:
        asked.append(list(users))
        return [Scored({1: 1.0, 2: 1.0, 3: -1.0, 0: 0.0}[user], 0.0) for user in users]

    monkeypatch.setattr(accuracy, "score", by_index)
    results = judge_checkpoint(trained, prepared, config(tmp_path, seed=4))
    assert asked[:2] == [[1, 2, 3, 0] * 2, [0] * 8]
    assert asked[2] == shuffled(asked[0], [1, 2, 3], 4)
    readings = results.readings
    assert readings["seen"].rate == pytest.approx(4 / 6)
    assert readings["seen"].comparisons == 6
    assert readings["unseen"].rate == readings["generic"].rate == 0.5
    assert readings["unseen"].comparisons == 2
    hits = [other in (1, 2) for own, other in zip(asked[0], asked[2], strict=True) if own]
    assert readings["shuffled"].rate == pytest.approx(sum(hits) / 6)
    assert results.accuracy_by_user == {"ann": 1.0, "bob": 1.0, "cat": 0.0, "zoe": 0.5}
    assert results.accuracy_macro == 0.625
    written = json.loads((tmp_path / "judged/results.json").read_text())
    assert written == results.summary()
    assert results.out == tmp_path / "judged"


def test_it_agrees_with_the_runs_own_evaluation(tmp_path: Path, trained: Path, prepared: Path) -> None:
    found = judge_checkpoint(trained, prepared, config(tmp_path, batch_size=3))
    own = json.loads((trained / "results.json").read_text())["eval"]
    assert found.margin_by_user == pytest.approx(own["margin_by_user"], abs=1e-5)
    assert found.accuracy_by_user == own["accuracy_by_user"]


def test_a_full_finetune_is_measured_against_its_base(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    """Its weights are not those of the base: compared with itself, only the soft prompt would make a margin."""
    results = train(make_config(tmp_path / "full", full_finetune=True))
    found = judge_checkpoint(tmp_path / "full", prepared, config(tmp_path))
    assert found.margin_by_user == pytest.approx(results["eval"]["margin_by_user"], abs=1e-5)


def test_users_are_those_of_the_run_not_of_the_file(tmp_path: Path, trained: Path, prepared: Path) -> None:
    """Another data set may number its users differently: ids decide."""
    from dataclasses import replace

    data = read_prepared(prepared)
    renumbered = [replace(row, user_index=4 - row.user_index if row.user_index else 0) for row in data.eval]
    write_prepared(tmp_path / "d", Prepared(data.train, renumbered, data.users, {"dataset": "small"}))
    found = judge_checkpoint(trained, tmp_path / "d", config(tmp_path, out=tmp_path / "a"))
    expected = judge_checkpoint(trained, prepared, config(tmp_path, out=tmp_path / "b"))
    assert found.margin_by_user == expected.margin_by_user


def test_a_single_user_has_no_other_to_stand_in(
    tmp_path: Path, make_config: MakeConfig, make_prepared: Callable[[Path], Path]
) -> None:
    """The control is missing then, and not equal to the reading that it controls."""
    from dataclasses import replace

    data = read_prepared(make_prepared(tmp_path / "d"))
    one = Prepared(
        [row for row in data.train if row.user_id == "ann"],
        [row for row in data.eval if row.user_id == "ann"],
        [replace(user, user_index=1) for user in data.users if user.id == "ann"],
        {"dataset": "small"},
    )
    write_prepared(tmp_path / "one", one)
    train(make_config(tmp_path / "r", dataset=str(tmp_path / "one"), max_steps=1))
    readings = judge_checkpoint(tmp_path / "r", tmp_path / "one", config(tmp_path)).readings
    assert readings["seen"] is not None
    assert readings["shuffled"] is None
    assert readings["unseen"] is None


def test_no_held_out_comparisons(tmp_path: Path, trained: Path, prepared: Path) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "d", Prepared(data.train, [], data.users, {"dataset": "small"}))
    with pytest.raises(PrlhfError, match="has no held-out comparisons"):
        judge_checkpoint(trained, tmp_path / "d", config(tmp_path))
    assert not (tmp_path / "judged").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, trained: Path, prepared: Path) -> None:
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged/mine.txt").write_text("x")
    with pytest.raises(PrlhfError):
        judge_checkpoint(trained, prepared, config(tmp_path))
    assert (tmp_path / "judged/mine.txt").exists()


def test_the_runs_own_data_are_what_is_judged_on(
    tmp_path: Path, trained: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judge_checkpoint(trained, None, config(tmp_path, out=tmp_path / "a"))
    same = judge_checkpoint(trained, prepared, config(tmp_path, out=tmp_path / "b"))
    assert found == same.model_copy(update={"out": tmp_path / "a"})
    monkeypatch.setattr(accuracy, "trained_on", lambda run: str(tmp_path / "gone"))
    with pytest.raises(PrlhfError, match=r"is gone from .*/gone; give its new folder with --dataset"):
        judge_checkpoint(trained, None, config(tmp_path))


def test_the_command_needs_no_data_set(tmp_path: Path, trained: Path, prepared: Path) -> None:
    words = ["judge", "--checkpoint", str(trained), "--out", str(tmp_path / "j")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "j/results.json").read_text())["dataset"] == str(prepared)
    done = CliRunner().invoke(app, [*words, "a.jsonl", "b.jsonl"])
    assert (done.exit_code, "--checkpoint takes no response files" in done.stderr) == (2, True)


@pytest.mark.parametrize("unused", [{"judge": "rule:longer"}, {"limit": 3}, {"concurrency": 2}])
def test_settings_of_judges_are_refused(trained: Path, prepared: Path, tmp_path: Path, unused: dict[str, Any]) -> None:
    ((key, value),) = unused.items()
    with pytest.raises(PrlhfError, match=f"^{key} = {value} is not used by --checkpoint; leave it out"):
        judge_checkpoint(trained, prepared, config(tmp_path, **unused))
