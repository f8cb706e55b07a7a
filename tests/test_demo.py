"""The demo: its measures and checks on literal values, and the whole of it in a slow test."""

import json
import time

import pytest
from typer.testing import CliRunner

from prlhf.demo.run import expectations, measure, run_demo
from prlhf.errors import PrlhfError
from prlhf.recipes import load_recipe
from prlhf.responses import Response
from prlhf.results import FigureRow
from prlhf_cli.main import app

PROMPT = "POST: on monday my boss sold boats. on friday my coach hid keys.\nTL;DR:"
GOOD, FALSE, BROKEN = " on monday my boss sold boats.", " on monday my boss sold hats.", " broke broke broke"


def response(user, text, finish="stop", number=0):
    return Response(f"p{number}", user, 0, PROMPT, text, 10, 5, finish, {})


def row(label, kind, words, well_formed=1.0, accuracy=1.0, vanilla=0.0):
    return FigureRow(label, kind, words, 0.5, well_formed, 1.0, 0, accuracy, vanilla)


def rows(**changes):
    given = {
        "1": row("1", "user", 12.0),
        "4": row("4", "minority", 5.0),
        "generic": row("generic", "generic", 11.0),
        "vanilla": row("vanilla", "vanilla", 10.0),
        "base": row("base", "base", 10.0),
    }
    return list((given | changes).values())


def test_measure_by_hand():
    written = {
        "personalized": [
            response("2", GOOD, number=0),
            response("2", BROKEN, number=1),
            response("10", "", number=0),
            response("10", FALSE, number=1),
            response("generic", GOOD, finish="length"),
        ],
        "vanilla": [response("generic", GOOD)],
        "base": [response("generic", FALSE)],
    }
    scores = {"accuracy_by_user": {"2": 0.75, "10": 1.0}, "accuracy_generic": 0.5}
    vanilla = {"accuracy_by_user": {"2": 0.25, "10": 0.5}, "accuracy_macro": 0.4}
    got = {r.label: r for r in measure(written, scores, vanilla, minority=["10"])}
    assert list(got) == ["2", "10", "generic", "vanilla", "base"]
    assert (got["2"].kind, got["10"].kind) == ("user", "minority")
    assert got["2"].words == (6 + 3) / 2
    assert got["2"].standard_error == pytest.approx(1.5)  # standard deviation 3 / sqrt 2, over sqrt 2
    assert (got["2"].well_formed, got["2"].faithful) == (0.5, 0.5)
    assert (got["10"].well_formed, got["10"].faithful, got["10"].empty) == (0.5, 0.0, 1)
    assert got["generic"].well_formed == 0.0
    assert (got["2"].accuracy, got["2"].vanilla_accuracy) == (0.75, 0.25)
    assert (got["generic"].accuracy, got["vanilla"].vanilla_accuracy) == (0.5, 0.4)


def test_all_met():
    assert all(check.met for check in expectations(rows()))


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"4": row("4", "minority", 5.1)}, "minority users' mean length"),
        ({"1": row("1", "user", 11.4)}, "majority users' mean length"),
        ({"generic": row("generic", "generic", 11.6)}, "generic user's length"),
        ({"1": row("1", "user", 12.0, well_formed=0.94)}, "well-formed"),
        ({"4": row("4", "minority", 5.0, accuracy=0.94)}, "minority users' accuracy"),
        ({"4": row("4", "minority", 5.0, vanilla=0.42)}, "vanilla DPO's accuracy"),
    ],
)
def test_each_expectation_can_be_missed(changes, missed):
    failed = [check.name for check in expectations(rows(**changes)) if not check.met]
    assert len(failed) == 1
    assert failed[0].startswith(missed)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(PrlhfError, match="exists and is not a demo"):
        run_demo(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_quick_demo_does_all_of_it_and_says_that_it_checks_nothing(tmp_path, monkeypatch):
    """It is even shorter here; the packaging script measures the time of the real one."""
    monkeypatch.chdir(tmp_path)
    whole, little = load_recipe("demo"), load_recipe("demo-quick")
    assert little["train"]["max_steps"] * 10 <= whole["train"]["max_steps"]
    least = {
        "prep": little["prep"] | {"comparisons": 6},
        "train": little["train"] | {"max_steps": 1, "eval_limit": 8},
        "generate": little["generate"] | {"max_prompts": 1, "max_new_tokens": 4},
    }
    monkeypatch.setattr("prlhf.recipes.load_recipe", {"demo-quick": least}.__getitem__)
    done = CliRunner().invoke(app, ["demo", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["quick"], result["checks"]) == (True, [])
    assert [row["label"] for row in result["rows"]] == ["1", "2", "3", "4", "generic", "vanilla", "base"]
    assert (tmp_path / "runs/demo-quick/figure3.png").stat().st_size > 10_000
    shown = CliRunner().invoke(app, ["demo", "--quick"])  # continues
    assert "too little training for the paper's figures" in shown.stdout
    assert "expected" not in shown.stdout


@pytest.mark.parametrize("prep", [{"minority": 0.0}, {"minority": 1.0}, {"users": 1}], ids=str)
def test_a_demo_without_one_of_its_groups_comes_to_its_end(prep, tmp_path):
    little = load_recipe("demo-quick")
    recipe = {
        "prep": little["prep"] | {"comparisons": 6} | prep,
        "train": little["train"] | {"max_steps": 1, "eval_limit": 8},
        "generate": little["generate"] | {"max_prompts": 1, "max_new_tokens": 4},
    }
    found = run_demo(tmp_path / "demo", recipe)
    groups = {row.kind for row in found.rows} & {"user", "minority"}
    assert groups == ({"user"} if prep.get("minority") == 0 else {"minority"})
    names = " ".join(check.name for check in found.checks)
    assert ("minority" in names, "majority" in names) == ("minority" in groups, "user" in groups)


def test_nothing_is_met_beside_a_base_that_writes_nothing():
    silent = {name: row(name, name, 0.0) for name in ("base", "vanilla")}
    failed = [check.name for check in expectations(rows(**silent)) if not check.met]
    assert len(failed) == 3
    assert all("length" in name for name in failed)


def test_the_quick_demo_has_one_recipe():
    done = CliRunner().invoke(app, ["demo", "--quick", "--recipe", "demo"])
    assert done.exit_code == 2
    assert "leave out --quick or --recipe" in done.output


@pytest.mark.slow
def test_the_demo_meets_its_expectations_and_a_rerun_trains_nothing(tmp_path):
    recipe = load_recipe("demo")
    results = run_demo(tmp_path / "demo", recipe)
    assert [check.name for check in results.checks if not check.met] == []
    assert (tmp_path / "demo" / "figure3.png").stat().st_size > 10_000
    began = time.perf_counter()
    assert run_demo(tmp_path / "demo", recipe).rows == results.rows
    assert time.perf_counter() - began < 60
