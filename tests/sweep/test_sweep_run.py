"""A sweep from its space to its files, with Ray and training replaced."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.folders import mark
from prlhf.recipes import load_recipe, resolve
from prlhf.sweep.trials import Trial
from prlhf.train.run_folder import write_recipe

SPACE = {"alpha": "0.2,0.5", "k": "3,4"}
Fixture = Any


def score(config: TrainConfig) -> dict[str, Any]:
    """1.6 at (0.2, 4), 2 at (0.5, 3) and (0.5, 4)."""
    return {"score": min(2.0, config.alpha * config.k * 2), "loss": float(np.float32(config.k)), "run": str(config.out)}


def test_every_point_is_run_in_its_own_folder(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    out, train = tmp_path / "sweep", trainer(score)
    report = run_sweep(train, out, SPACE)
    assert train.points("alpha", "k") == [(0.2, 3), (0.2, 4), (0.5, 3), (0.5, 4)]
    assert [settings.train.out for settings in train.settings] == [out / f"trial-00{i}" for i in range(4)]
    assert {settings.train.beta for settings in train.settings} == {0.5}
    assert report["best"] == {"trial": "trial-002", "point": {"alpha": 0.5, "k": 3}, "value": 2.0}  # first of equals
    assert (report["done"], report["failed"], report["skipped"]) == (4, 0, 0)
    assert [row["result"]["loss"] for row in rows(out)] == [3.0, 4.0, 3.0, 4.0]
    assert {row["status"] for row in rows(out)} == {"done"}


def test_min_takes_the_smallest(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    report = run_sweep(trainer(score), tmp_path, SPACE, mode="min")
    assert report["best"]["point"] == {"alpha": 0.2, "k": 3}


def test_table_and_best_recipe(tmp_path: Path, prepared: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    made = trainer(lambda c: {"score": c.lr, "seconds": 7, "reference_computed": 0, "reference_cached": 9})
    report = run_sweep(made, tmp_path, {"lr": "1e-5,1e-4"}, {"model": "tiny"})
    table = pq.read_table(tmp_path / "results.parquet").to_pydict()
    assert table["config/lr"] == table["result/score"] == [1e-5, 1e-4]
    assert table["result/seconds"] == [7.0, 7.0]
    assert table["trial"] == ["trial-000", "trial-001"]
    assert (table["reference_computed"], table["reference_cached"]) == ([0, 0], [9, 9])
    assert report["shared"]["in_trials"] == {"computed": 0, "cached": 18}
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# prlhf train --recipe ")
    assert "score = 0.0001" in text
    best = resolve(TrainConfig, load_recipe(tmp_path / "best.yaml")["train"])  # `out` is left to the reader
    assert best == TrainConfig(dataset=str(prepared.resolve()), beta=0.5, model="tiny", lr=1e-4)


def test_a_random_sweep_is_the_same_for_the_same_seed(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    space = {"alpha": "0.1:0.9", "user_tokens": "1,5,10,20", "k": "5,10,50"}
    found = {}
    for name, seed, trials in (("a", 1, 5), ("b", 1, 5), ("c", 2, 5), ("d", 1, 8)):
        train = trainer(score)
        run_sweep(train, tmp_path / name, space, trials=trials, seed=seed)
        found[name] = train.points(*space)
    assert found["a"] == found["b"] == found["d"][:5]  # a longer search begins with the same points
    assert found["a"] != found["c"]
    assert len(set(found["d"])) == 8


def test_a_failing_trial_does_not_end_the_sweep_and_is_run_again(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    def fails(config: TrainConfig) -> dict[str, Any]:
        if config.k == 3:
            raise PrlhfError("k = 3 is unlucky", "take\n4") if config.alpha < 0.3 else ZeroDivisionError("by\nzero")
        return score(config)

    report = run_sweep(trainer(fails), tmp_path, SPACE)
    assert [trial["status"] for trial in report["trials"]] == ["failed", "done", "failed", "done"]
    assert report["trials"][0]["error"] == "k = 3 is unlucky; take 4"
    assert report["trials"][2]["error"] == "ZeroDivisionError: by zero"
    saved = rows(tmp_path)
    assert saved[0]["traceback"] is None
    assert "line" in saved[2]["traceback"]
    assert pq.read_table(tmp_path / "results.parquet")["result/score"].to_pylist() == [None, 1.6, None, 2.0]
    page = (tmp_path / "report.html").read_text()
    assert "ZeroDivisionError: by zero" in page
    again = trainer(score)
    report = run_sweep(again, tmp_path, SPACE, resume=True)
    assert again.points("alpha", "k") == [(0.2, 3), (0.5, 3)]
    assert [settings.train.out for settings in again.settings] == [tmp_path / "trial-000", tmp_path / "trial-002"]
    assert (report["done"], report["skipped"]) == (4, 2)
    assert rows(tmp_path)[0]["error"] is None


@pytest.mark.parametrize("search", ["random", "optuna", "grid"])
def test_a_killed_sweep_goes_on_as_if_it_had_not_been(
    search: str, tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    space = {"alpha": "0.2,0.3,0.4,0.5", "k": "3,4"} if search == "grid" else {"alpha": "0.1:0.9", "k": "3:9"}
    given: dict[str, Any] = {"search": search} if search == "grid" else {"search": search, "trials": 8}

    def killed(config: TrainConfig) -> dict[str, Any]:
        if len(stopped.settings) == 6:
            raise KeyboardInterrupt
        return score(config)

    stopped, rest, whole = trainer(killed), trainer(score), trainer(score)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(stopped, tmp_path / "killed", space, **given)
    assert [row["status"] for row in rows(tmp_path / "killed")][:6] == ["done"] * 5 + ["interrupted"]
    with pytest.raises(PrlhfError, match="already holds a sweep; continue with --resume"):
        run_sweep(rest, tmp_path / "killed", space, **given)
    resumed = run_sweep(rest, tmp_path / "killed", space, resume=True, **given)
    assert len(rest.settings) == 3
    assert rest.points("alpha", "k")[0] == stopped.points("alpha", "k")[5]
    unbroken = run_sweep(whole, tmp_path / "whole", space, **given)
    assert stopped.points("alpha", "k")[:5] + rest.points("alpha", "k") == whole.points("alpha", "k")
    for report in (resumed, unbroken):
        del report["out"], report["skipped"]
    assert resumed == unbroken


def test_a_finished_sweep_runs_nothing(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    run_sweep(trainer(score), tmp_path, SPACE)
    again = trainer(score)
    report = run_sweep(again, tmp_path, SPACE, metric="loss", mode="min", resume=True)
    assert report["best"]["value"] == 3.0
    assert again.settings == []


def test_a_wider_space_keeps_what_is_done_and_numbers_on(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    run_sweep(trainer(score), tmp_path, {"alpha": "0.5"})
    train = trainer(score)
    report = run_sweep(train, tmp_path, {"alpha": "0.1,0.5"}, resume=True)
    assert [trial["trial"] for trial in report["trials"]] == ["trial-001", "trial-000"]
    assert train.points("alpha") == [(0.1,)]
    other = trainer(score)
    run_sweep(other, tmp_path, {"alpha": "0.5"}, {"beta": 0.1}, resume=True)
    assert [s.train.out for s in other.settings] == [tmp_path / "trial-002"]  # another base is another trial
    assert len(rows(tmp_path)) == 3


def test_the_log_says_which_trial_a_killed_sweep_was_in(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    seen: list[list[str]] = []

    def look(config: TrainConfig) -> dict[str, Any]:
        seen.append([row["status"] for row in rows(tmp_path)])
        return score(config)

    run_sweep(trainer(look), tmp_path, {"alpha": "0.2,0.5"})
    assert seen == [["running", "planned"], ["done", "running"]]


def test_an_unknown_metric_ends_the_sweep_but_keeps_the_trial(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture
) -> None:
    train = trainer(score)
    with pytest.raises(PrlhfError, match=r"trial-000 has no metric 'scre'; did you mean 'score'\?"):
        run_sweep(train, tmp_path, SPACE, metric="scre")
    assert len(train.settings) == 1
    with pytest.raises(PrlhfError, match="no metric 'run'; known: loss, score"):  # a text is not a metric
        run_sweep(train, tmp_path, SPACE, metric="run", resume=True)
    assert len(train.settings) == 1  # found in the log, before anything is run
    run_sweep(train, tmp_path, SPACE, resume=True)
    assert len(train.settings) == 4


def test_a_metric_that_is_not_a_number_never_wins(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    train = trainer(lambda config: {"score": None if config.alpha == 0.5 else 0.1})
    report = run_sweep(train, tmp_path, {"alpha": "0.5,0.2"})
    assert report["best"]["point"] == {"alpha": 0.2}
    assert report["trials"][0]["value"] is None
    with pytest.raises(PrlhfError, match="none of 1 trials has a result; 'score' was not a number in any"):
        run_sweep(train, tmp_path, {"alpha": "0.5"}, resume=True)


def test_all_trials_failing_is_an_error_with_the_first_reason(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture
) -> None:
    def fails(config: TrainConfig) -> dict[str, Any]:
        raise PrlhfError(f"alpha {config.alpha} failed")

    with pytest.raises(PrlhfError, match=r"none of 4 trials has a result; the first error: alpha 0\.2 failed"):
        run_sweep(trainer(fails), tmp_path, SPACE)
    assert [row["status"] for row in rows(tmp_path)] == ["failed"] * 4
    assert "alpha 0.2 failed" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        ({"alpha": "0.5,2"}, {}, "alpha = 2 is refused"),
        ({"alpha": "0.5:1.5"}, {"trials": 3}, "alpha = 1.5 is refused: it is out of range"),
        ({"alpha": "0.1:0.9"}, {}, "the range alpha = 0.1:0.9 has no grid; sample it with --trials N"),
        ({"alpha": "0.1:0.9"}, {"search": "optuna"}, "search = optuna without a number of trials; add --trials N"),
        ({"alpha": "0.1,0.9"}, {"search": "grid", "trials": 2}, "trials = 2 of a grid"),
        ({"user_tokens": "0:4"}, {"trials": 3}, "user_tokens = 0 leaves user_model = individual"),
        ({"generate.temperature": "0.5,1"}, {}, "generate.temperature changes nothing about score"),
        ({"alpha": "0.1,0.9"}, {"against": "x.jsonl"}, "against = x.jsonl is not used with metric = score"),
        ({"alpha": "0.1,0.9"}, {"asha": True}, "eval_every is 0; add --set eval_every=N"),
        ({"alpha": "0.1,0.9"}, {"grace": 5}, "grace = 5 is not used with asha = false"),
        ({"alpha": "0.1,0.9"}, {"metric": "judge/winrate"}, "judge/winrate needs a judge; add --judge NAME"),
        (
            {"alpha": "0.1,0.9"},
            {"asha": True, "metric": "judge/winrate", "judge": "rule:longer"},
            "--asha cannot stop trials by judge/winrate",
        ),
        ({"alpha": "0.1,0.9"}, {"metric": "judge/winrate", "against": "x.jsonl"}, "no responses at x.jsonl"),
        ({"objective": "dpo,rm"}, {"metric": "judge/winrate"}, "judge/winrate needs responses"),
    ],
)
def test_nothing_is_run_or_written_where_a_sweep_is_refused(
    space: Any, given: Any, message: str, tmp_path: Path, run_sweep: Fixture, trainer: Fixture
) -> None:
    train = trainer(score)
    with pytest.raises(PrlhfError) as error:
        run_sweep(train, tmp_path / "sweep", space, **given)
    assert message in str(error.value)
    assert train.settings == []
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chapter.txt", "dear", "exists and is not a sweep: it holds chapter.txt; choose another --out"),
        ("results.jsonl", "{}\n", "results.jsonl:1 is not a trial: "),
        ("results.jsonl", "half a li", "results.jsonl:1 is not a trial: "),
    ],
)
def test_foreign_and_damaged_folders_are_refused(
    name: str, content: str, message: str, tmp_path: Path, run_sweep: Fixture, trainer: Fixture
) -> None:
    if name == "results.jsonl":
        mark(tmp_path, "sweep")
    (tmp_path / name).write_text(content)
    with pytest.raises(PrlhfError) as error:
        run_sweep(trainer(score), tmp_path, SPACE, resume=name == "results.jsonl")
    assert message in str(error.value)
    assert (tmp_path / name).read_text() == content


def test_there_must_be_something_to_resume(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    with pytest.raises(PrlhfError, match="holds no sweep to resume; start it without --resume"):
        run_sweep(trainer(score), tmp_path / "none", SPACE, resume=True)


def test_the_display_sees_every_change(tmp_path: Path, run_sweep: Fixture, trainer: Fixture) -> None:
    calls: list[Any] = []

    class Display:
        def begin(self, sweep: Any, trials: Any, total: int) -> None:
            calls.append(total)

        def changed(self, trials: Any, trial: Trial) -> None:
            calls.append((trial.name, trial.status, len(trial.history)))

    made = trainer(lambda config: {"eval/score": 2.0}, reports=2)
    run_sweep(made, tmp_path, {"alpha": "0.2"}, metric="eval/score", display=Display())
    name = "trial-000"
    assert calls == [1, (name, "running", 0), (name, "running", 1), (name, "running", 2), (name, "done", 2)]


def begun(config: TrainConfig) -> dict[str, Any]:
    """A trial that has written its recipe, as a real one does before its first step."""
    write_recipe(config.folder, config, read_prepared(Path(config.dataset)))
    return score(config)


def test_trials_are_known_where_their_data_moved(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, rows: Fixture, make_prepared: Fixture
) -> None:
    old, new = make_prepared(tmp_path / "old"), tmp_path / "new"

    def killed(config: TrainConfig) -> dict[str, Any]:
        if config.alpha == 0.4:
            raise KeyboardInterrupt
        return begun(config)

    space = {"alpha": "0.2,0.3,0.4,0.5"}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(trainer(killed), tmp_path / "s", space, {"dataset": str(old)})
    old.rename(new)
    rest = trainer(begun)
    with pytest.raises(PrlhfError, match=r"/s is gone from .*/old; give its new folder: --set dataset=FOLDER"):
        run_sweep(rest, tmp_path / "s", space, {"dataset": str(old)}, resume=True)
    run_sweep(rest, tmp_path / "s", space, {"dataset": str(new)}, resume=True)
    assert rest.points("alpha") == [(0.4,), (0.5,)]
    assert [row["name"] for row in rows(tmp_path / "s")] == [f"trial-00{number}" for number in range(4)]
    assert {row["config"]["dataset"] for row in rows(tmp_path / "s")} == {str(new)}


def test_trials_on_other_data_in_the_same_folder_are_not_taken_for_done(
    tmp_path: Path, run_sweep: Fixture, trainer: Fixture, make_prepared: Fixture
) -> None:
    data = make_prepared(tmp_path / "d")
    run_sweep(trainer(begun), tmp_path / "s", {"alpha": "0.2"}, {"dataset": str(data)})
    whole = read_prepared(data)
    write_prepared(data, replace(whole, train=whole.train[:9]))
    with pytest.raises(PrlhfError, match=r"the data in .*/d changed since .*/s was started; choose another --out"):
        run_sweep(trainer(begun), tmp_path / "s", {"alpha": "0.2,0.3"}, {"dataset": str(data)}, resume=True)


@pytest.mark.parametrize("kind", ["oracle", "reward"])
def test_workers_get_the_absolute_path_of_what_a_judge_reads(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_sweep: Fixture, trainer: Fixture
) -> None:
    (tmp_path / "known").mkdir()
    monkeypatch.chdir(tmp_path)
    made = trainer(lambda config: {"judge/winrate": 0.5})
    run_sweep(made, tmp_path / "sweep", {"alpha": "0.2"}, metric="judge/winrate", judge=f"{kind}:known")
    assert [settings.judge.judge for settings in made.settings] == [f"{kind}:{tmp_path.resolve() / 'known'}"]
