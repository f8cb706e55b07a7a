import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prlhf.config import TrainConfig, load_recipe, resolve
from prlhf.errors import Interrupted, PrlhfError
from prlhf.progress import Silent
from prlhf.sweep.grid import run_grid
from prlhf.sweep.space import parse_space

BASE = {"beta": 0.5, "model": "tiny", "out": Path("ignored")}
SPACE = parse_space(["alpha=0.2,0.5", "k=3,4"])


class Trainer:
    """Stands in for training: remembers what it was asked, answers by `result`."""

    def __init__(self, result: Callable[[TrainConfig], dict[str, Any]]) -> None:
        self.asked: list[TrainConfig] = []
        self.result = result

    def __call__(self, config: TrainConfig) -> dict[str, Any]:
        self.asked.append(config)
        return self.result(config)

    @property
    def points(self) -> list[tuple[float, int]]:
        return [(config.alpha, config.k) for config in self.asked]


def score(config: TrainConfig) -> dict[str, Any]:
    """1.6 at (0.2, 4), 2 at (0.5, 3) and (0.5, 4)."""
    return {"accuracy": min(2.0, config.alpha * config.k * 2), "loss": np.float32(config.k), "run": config.out}


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_every_point_is_run_in_its_own_folder(tmp_path: Path) -> None:
    out, train = tmp_path / "sweep", Trainer(score)
    report = run_grid(BASE, SPACE, out, train, "accuracy")
    assert train.points == [(0.2, 3), (0.2, 4), (0.5, 3), (0.5, 4)]
    assert [config.out for config in train.asked] == [out / f"trial-00{i}" for i in range(4)]
    assert {config.beta for config in train.asked} == {0.5}
    assert report["best"] == {"trial": "trial-002", "point": {"alpha": 0.5, "k": 3}, "value": 2.0}  # first of equals
    assert (report["done"], report["failed"], report["skipped"]) == (4, 0, 0)
    assert [row["result"]["loss"] for row in rows(out)] == [3.0, 4.0, 3.0, 4.0]
    assert {row["status"] for row in rows(out)} == {"done"}


def test_min_takes_the_smallest(tmp_path: Path) -> None:
    report = run_grid(BASE, SPACE, tmp_path, Trainer(score), "accuracy", "min")
    assert report["best"]["point"] == {"alpha": 0.2, "k": 3}


def test_table_and_best_recipe(tmp_path: Path) -> None:
    run_grid(
        BASE, parse_space(["lr=1e-5,1e-4"]), tmp_path, Trainer(lambda c: {"accuracy": c.lr, "seconds": 7}), "accuracy"
    )
    table = pq.read_table(tmp_path / "results.parquet").to_pydict()
    assert table["config/lr"] == table["result/accuracy"] == [1e-5, 1e-4]
    assert table["result/seconds"] == [7.0, 7.0]
    assert table["trial"] == ["trial-000", "trial-001"]
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# prlhf train --recipe ")
    assert "accuracy = 0.0001" in text
    best = resolve(TrainConfig, load_recipe(tmp_path / "best.yaml")["train"])
    assert best == TrainConfig(beta=0.5, model="tiny", lr=1e-4)  # `out` is left to the reader


def test_a_failing_trial_does_not_end_the_sweep_and_is_run_again(tmp_path: Path) -> None:
    def fails(config: TrainConfig) -> dict[str, Any]:
        if config.k == 3:
            raise PrlhfError("k = 3 is unlucky", "take\n4") if config.alpha < 0.3 else ZeroDivisionError("by\nzero")
        return score(config)

    notes: list[str] = []

    class Notes(Silent):
        def note(self, line: str) -> None:
            notes.append(line)

    report = run_grid(BASE, SPACE, tmp_path, Trainer(fails), "accuracy", progress=Notes())
    assert [trial["status"] for trial in report["trials"]] == ["failed", "done", "failed", "done"]
    assert report["trials"][0]["error"] == "k = 3 is unlucky; take 4"
    assert report["trials"][2]["error"] == "ZeroDivisionError: by zero"
    assert notes == ["trial-000 failed: k = 3 is unlucky; take 4", "trial-002 failed: ZeroDivisionError: by zero"]
    saved = rows(tmp_path)
    assert saved[0]["traceback"] is None
    assert "line" in saved[2]["traceback"]
    assert pq.read_table(tmp_path / "results.parquet")["result/accuracy"].to_pylist() == [None, 1.6, None, 2.0]
    again = Trainer(score)
    report = run_grid(BASE, SPACE, tmp_path, again, "accuracy")
    assert again.points == [(0.2, 3), (0.5, 3)]
    assert [config.out for config in again.asked] == [tmp_path / "trial-000", tmp_path / "trial-002"]
    assert (report["done"], report["skipped"]) == (4, 2)
    assert rows(tmp_path)[0]["error"] is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("saved; go on with --resume")])
def test_ctrl_c_ends_the_sweep_and_a_rerun_goes_on(stop: BaseException, tmp_path: Path) -> None:
    def interrupted(config: TrainConfig) -> dict[str, Any]:
        if config.k == 4:
            raise stop
        return score(config)

    with pytest.raises(Interrupted, match="stopped in trial-001; run the same command again"):
        run_grid(BASE, SPACE, tmp_path, Trainer(interrupted), "accuracy")
    assert [row["status"] for row in rows(tmp_path)] == ["done", "interrupted", "planned", "planned"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    rest = Trainer(score)
    resumed = run_grid(BASE, SPACE, tmp_path, rest, "accuracy")
    assert rest.points == [(0.2, 4), (0.5, 3), (0.5, 4)]
    whole = run_grid(BASE, SPACE, tmp_path.with_name("whole"), Trainer(score), "accuracy")
    for report in (resumed, whole):
        del report["out"], report["skipped"]
    assert resumed == whole


def test_a_finished_sweep_runs_nothing(tmp_path: Path) -> None:
    run_grid(BASE, SPACE, tmp_path, Trainer(score), "accuracy")
    again = Trainer(score)
    assert run_grid(BASE, SPACE, tmp_path, again, "loss", "min")["best"]["value"] == 3.0
    assert again.asked == []


def test_a_wider_space_keeps_what_is_done_and_numbers_on(tmp_path: Path) -> None:
    run_grid(BASE, parse_space(["alpha=0.5"]), tmp_path, Trainer(score), "accuracy")
    train = Trainer(score)
    report = run_grid(BASE, parse_space(["alpha=0.1,0.5"]), tmp_path, train, "accuracy")
    assert [trial["trial"] for trial in report["trials"]] == ["trial-001", "trial-000"]
    assert [config.alpha for config in train.asked] == [0.1]
    other = Trainer(score)
    run_grid(BASE | {"beta": 0.1}, parse_space(["alpha=0.5"]), tmp_path, other, "accuracy")
    assert [config.out for config in other.asked] == [tmp_path / "trial-002"]  # another base is another trial
    assert len(rows(tmp_path)) == 3


def test_the_record_says_which_trial_a_killed_sweep_was_in(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def look(config: TrainConfig) -> dict[str, Any]:
        seen.append([row["status"] for row in rows(tmp_path)])
        return score(config)

    run_grid(BASE, parse_space(["alpha=0.2,0.5"]), tmp_path, Trainer(look), "accuracy")
    assert seen == [["running", "planned"], ["done", "running"]]


def test_an_unknown_metric_ends_the_sweep_but_keeps_the_trial(tmp_path: Path) -> None:
    train = Trainer(score)
    with pytest.raises(PrlhfError, match=r"trial-000 has no metric 'acuracy'; did you mean 'accuracy'\?"):
        run_grid(BASE, SPACE, tmp_path, train, "acuracy")
    assert len(train.asked) == 1
    with pytest.raises(PrlhfError, match="no metric 'run'; known: accuracy, loss"):  # text is no metric
        run_grid(BASE, SPACE, tmp_path, train, "run")
    assert len(train.asked) == 1  # found in the record, before anything is run
    run_grid(BASE, SPACE, tmp_path, train, "accuracy")
    assert len(train.asked) == 4


def test_a_metric_that_is_not_a_number_never_wins(tmp_path: Path) -> None:
    train = Trainer(lambda config: {"accuracy": float("nan") if config.alpha == 0.5 else 0.1})
    report = run_grid(BASE, parse_space(["alpha=0.5,0.2"]), tmp_path, train, "accuracy")
    assert report["best"]["point"] == {"alpha": 0.2}
    assert report["trials"][0]["value"] is None
    with pytest.raises(PrlhfError, match="none of 1 trials has a result; 'accuracy' was not a number in any"):
        run_grid(BASE, parse_space(["alpha=0.5"]), tmp_path, train, "accuracy")


def test_all_trials_failing_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    def fails(config: TrainConfig) -> dict[str, Any]:
        raise PrlhfError(f"alpha {config.alpha} failed")

    with pytest.raises(PrlhfError, match=r"none of 4 trials has a result; the first error: alpha 0\.2 failed"):
        run_grid(BASE, SPACE, tmp_path, Trainer(fails), "accuracy")
    assert [row["status"] for row in rows(tmp_path)] == ["failed"] * 4


def test_nothing_is_run_or_written_where_a_point_is_refused(tmp_path: Path) -> None:
    train = Trainer(score)
    with pytest.raises(PrlhfError, match="alpha = 2 is refused"):
        run_grid(BASE, parse_space(["alpha=0.5,2"]), tmp_path / "sweep", train, "accuracy")
    with pytest.raises(PrlhfError, match="mode 'mx' is not known; did you mean 'max'"):
        run_grid(BASE, SPACE, tmp_path / "sweep", train, "accuracy", "mx")  # type: ignore[arg-type]
    assert train.asked == []
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chapter.txt", "dear", "exists and is no sweep; choose another --out"),
        ("results.jsonl", "{}\n", "results.jsonl:1 is no trial: "),
        ("results.jsonl", "half a li", "results.jsonl:1 is no trial: "),
    ],
)
def test_foreign_and_damaged_folders_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PrlhfError) as error:
        run_grid(BASE, SPACE, tmp_path, Trainer(score), "accuracy")
    assert message in str(error.value)
    assert (tmp_path / name).read_text() == content


def test_progress_counts_trials(tmp_path: Path) -> None:
    calls: list[Any] = []

    class Recorder(Silent):
        def start(self, label: str, total: int) -> None:
            calls.append((label, total))

        def advance(self, steps: int = 1, **values: float) -> None:
            calls.append(steps)

        def finish(self) -> None:
            calls.append("finish")

    for texts in (["alpha=0.2"], ["alpha=0.2,0.5,0.8"]):
        run_grid(BASE, parse_space(texts), tmp_path, Trainer(score), "accuracy", progress=Recorder())
    assert calls == [("sweep", 1), 0, 1, "finish", ("sweep", 3), 1, 1, 1, "finish"]
