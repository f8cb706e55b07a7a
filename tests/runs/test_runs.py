"""`prlhf runs`: lists, shows and compares runs, and says in a line what it cannot read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prlhf import api
from prlhf.errors import PrlhfError
from prlhf.files import in_use
from prlhf.runs.read import natural, read_run
from prlhf.train import metrics
from prlhf_cli.main import app

MakeConfig = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """run-2 is finished; run-10 was stopped and has other settings; the rest is damaged or not ours."""
    place = tmp_path_factory.mktemp("many")
    for name in ("run-2", "run-10", "deep/inside/run-3", "damaged", "cut"):
        shutil.copytree(trained, place / name)
    shutil.rmtree(place / "run-10/model")
    (place / "run-10/results.json").unlink()
    recipe = place / "run-10/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("alpha: 0.5", "alpha: 0.25"))
    rows = metrics.read(place / "run-10/metrics.jsonl")[:4]
    evaluation = {"step": 4, "eval": {"accuracy_macro": 0.75, "accuracy_by_user": {"ann": 0.75}}}
    (place / "run-10/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, evaluation]))
    (place / "damaged/recipe.yaml").write_text("train: [")
    (place / "cut/results.json").write_text('{"steps": 6')
    (place / "theirs/model").mkdir(parents=True)
    (place / "theirs/recipe.yaml").write_text("made: elsewhere")
    (place / "notes.txt").write_text("mine")
    return place


def run(*args: Any) -> Any:
    return CliRunner().invoke(app, ["runs", *map(str, args)])


def test_a_list_has_all_runs_and_names_the_damaged(folder: Path) -> None:
    found = api.list_runs(folder)
    assert [(one.name, one.state, one.steps) for one in found.runs] == [
        ("run-3", "finished", 6), ("run-2", "finished", 6), ("run-10", "stopped", 4),
    ]  # fmt: skip
    assert found.runs[2].score == ("accuracy_macro", 0.75)
    assert (found.runs[0].objective, found.runs[0].user_model, found.runs[0].per_user) == ("dpo", "individual", False)
    assert [line.partition(" ")[0] for line in found.faults] == ["cannot", "cannot"]
    assert "cut/results.json" in found.faults[0]
    assert "damaged/recipe.yaml" in found.faults[1]
    assert found.others == [folder / "theirs"]
    assert api.list_runs(folder / "run-2", folder / "theirs").runs == [found.runs[1]]


def test_the_list_of_the_command(folder: Path) -> None:
    told = run("list", folder)
    assert told.exit_code == 0
    assert "run-10" in told.stdout
    assert "75.0 %" in told.stdout
    assert told.stdout.count("not read: ") == 2
    assert told.stdout.splitlines()[-1] == "without a run: theirs"
    as_json = json.loads(run("list", folder, "--json").stdout)
    assert [one["name"] for one in as_json["runs"]] == ["run-3", "run-2", "run-10"]
    assert len(as_json["faults"]) == 2


def test_a_run_in_progress_is_running(folder: Path) -> None:
    """Until the process ends, however it ends: the lock is its own."""
    run = read_run(folder / "run-10")
    with in_use(folder / "run-10"):
        assert run.state == "running"
    assert run.state == "stopped"


def test_results_without_a_model_are_not_a_finished_run(trained: Path, tmp_path: Path) -> None:
    """The model is written last."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    assert read_run(tmp_path / "run").state == "stopped"


def test_training_says_that_it_runs(make_config: MakeConfig, tmp_path: Path) -> None:
    from prlhf.progress import Silent
    from prlhf.train.run import train

    states: list[str] = []
    progress: Any = Silent()
    progress.advance = lambda steps=1, **values: states.append(read_run(tmp_path / "r").state) if values else None
    train(make_config(tmp_path / "r", max_steps=2), progress=progress)
    assert states == ["running", "running"]
    assert read_run(tmp_path / "r").state == "finished"


def test_one_run(folder: Path) -> None:
    found = api.show_run(folder / "run-10")
    assert found.evaluations == [{"step": 4, "accuracy_macro": 0.75}]
    assert found.users == {"ann": {"accuracy": 0.75, "generic": None, "margin": None}}
    assert found.settings["alpha"] == 0.25
    assert "k" not in found.settings  # not used
    told = run("show", folder / "run-2")
    assert told.exit_code == 0, told.output
    assert "ann" in told.stdout
    assert "evaluations" in told.stdout


def test_runs_side_by_side(folder: Path, tmp_path: Path) -> None:
    found = api.compare_runs(folder / "run-2", folder / "run-10")
    assert found.settings == {"alpha": [0.5, 0.25]}
    assert found.results["accuracy_macro"][1] == 0.75
    assert found.results["margin_mean"][1] is None
    assert found.results["loss"][1] is None
    told = run("compare", folder / "run-2", folder / "run-10", "--html", tmp_path / "page.html")
    assert told.exit_code == 0, told.output
    assert "0.250" in told.stdout
    page = (tmp_path / "page.html").read_text()
    assert "<td>alpha</td><td>0.5</td><td>0.25</td>" in page
    assert "75.0 %" in page


def test_a_comparison_escapes_names_and_links_to_pages(trained: Path, tmp_path: Path) -> None:
    from prlhf.runs.report import write_run_report

    for name in ("a", "<b>bold<b>"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    write_run_report(tmp_path / "runs/a")
    api.compare_runs(tmp_path / "runs", html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in page
    assert '<a href="runs/a/report.html">a</a>' in page
    assert "None: the runs have the same settings." in page


@pytest.mark.parametrize(
    ("args", "line"),
    [(["list", "{0}/nothing"], "no folder at"),
     (["show", "{0}/theirs"], "is a folder of other files, not a training run"),
     (["show", "{0}/damaged"], "cannot read recipe"), (["show", "{0}/cut"], "cannot read"),
     (["show", "{0}/run-2", "{0}/run-10"], "show takes one run, got 2"),
     (["compare", "{0}/run-2"], "1 run to compare; give two runs"),
     (["compare", "{0}/run-2", "{0}/cut"], "cut/results.json"),
     (["list", "{0}", "--html", "x.html"], "--html x.html goes with show and compare"),
     (["show", "{0}/run-2", "--html", "{0}/notes.txt"], "is not a page of prlhf runs")],
)  # fmt: skip
def test_refused_in_one_line(folder: Path, args: list[str], line: str) -> None:
    told = run(*(arg.format(folder) for arg in args))
    assert told.exit_code == 2
    assert line in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert told.stdout == ""


def test_a_damaged_log(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run-10", tmp_path / "run")
    for text in ("[1]\n", "{}\n", "nothing\n", '{"step": "x"}\n'):
        (tmp_path / "run/metrics.jsonl").write_text(text)
        with pytest.raises(PrlhfError, match=r"metrics.jsonl is damaged"):
            api.show_run(tmp_path / "run")
        assert len(api.list_runs(tmp_path).faults) == 1


def test_settings_of_other_versions(folder: Path, tmp_path: Path) -> None:
    """An unknown key is a fault of that run, not of the list."""
    shutil.copytree(folder / "run-2", tmp_path / "run")
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    recipe["train"]["from_the_future"] = 1
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = api.list_runs(tmp_path)
    assert found.runs == []
    assert "from_the_future" in found.faults[0]


def test_names_in_their_order() -> None:
    assert sorted(["run-10", "run-9", "a", "run"], key=natural) == ["a", "run", "run-9", "run-10"]
