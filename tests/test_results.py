"""The commands of docs/RESULTS.md are valid and in a valid order, and the page matches its numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import prlhf
from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.recipes import load_recipe, resolve
from prlhf_cli import docs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import gather, pictures, report, results, shares, steps  # noqa: E402

EVERY = [step for experiment in steps.EXPERIMENTS.values() for step in experiment.steps]


@pytest.mark.parametrize("step", EVERY, ids=lambda step: step.done)
def test_commands_parse(step: steps.Step) -> None:
    docs.check_command("prlhf " + " ".join(steps.command_line(step, Path("w"))))


def test_every_need_is_made_by_an_earlier_step() -> None:
    made: set[str] = set()
    for step in EVERY:
        assert set(step.needs) <= made, step.command
        made.add(step.done)


def test_what_is_there_is_not_run_again_and_what_fails_stops_its_followers(tmp_path: Path) -> None:
    first = steps.Step("prep demo --comparisons 1 --out {w}/data", "data/manifest.json")
    wrong = steps.Step("prep nowhere/at-all.jsonl --out {w}/none", "none/manifest.json", ("data/manifest.json",))
    after = steps.Step("prep demo --out {w}/after", "after/manifest.json", ("none/manifest.json",))
    assert results.run_all([first, wrong, after], tmp_path, jobs=1) == 2
    assert (tmp_path / "data" / "train.parquet").exists()
    assert "no data at nowhere" in (tmp_path / "logs" / "none_manifest.json.log").read_text()
    assert not (tmp_path / "after").exists()
    made = (tmp_path / "data" / "manifest.json").stat().st_mtime_ns
    assert results.run_all([first], tmp_path, jobs=1) == 0
    assert (tmp_path / "data" / "manifest.json").stat().st_mtime_ns == made


def test_the_page_is_what_its_numbers_say(tmp_path: Path) -> None:
    """docs/RESULTS.md is the template filled in with docs/results.json."""
    numbers = json.loads((ROOT / "docs" / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(numbers))
    report.render(tmp_path / "no-runs", tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "docs" / "RESULTS.md").read_text()


def test_the_page_shows_what_was_run(tmp_path: Path) -> None:
    numbers = json.loads((ROOT / "docs" / "results.json").read_text())
    few = {"0.1": numbers["few_choices"]["0.1"]}
    table2 = dict.fromkeys(("0", "1"), numbers["table2"]["0"])
    kept = {name: numbers[name] for name in ("machine", "figure3", "table1")}
    (tmp_path / "results.json").write_text(json.dumps(kept | {"few_choices": few, "table2": table2}))
    report.render(tmp_path / "no-runs", tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| 10 % | 20 |" in page
    assert "| 0 % | 20 |" not in page
    assert "| gates-k10, seed 1 | against vanilla |" in page
    assert "### With the paper's soft prompts" not in page


def test_how_numbers_are_written() -> None:
    assert shares.interval({"rate": 0.644, "low": 0.5, "high": 0.7}) == "64 [50, 70]"
    assert shares.interval(None) == "–"
    assert [shares.percent(-0.004), shares.percent(-0.006, 1), shares.percent(None)] == ["0", "-0.6", ""]
    assert shares.wilson(96, 100) == pytest.approx({"share": 0.96, "low": 0.9016, "high": 0.9843, "of": 100}, abs=1e-3)
    assert shares.plus_minus({"mean": 6.4, "standard_error": 0.2}) == "6.4 ± 0.2"
    many = shares.over([0.5] * 10)
    assert (many["low"], many["share"], many["high"]) == (0.5, 0.5, 0.5)


def test_seeds_that_were_not_run_whole_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [tmp_path / step.done for step in steps.EXPERIMENTS["table2"].steps if "/seed-1/" in step.done]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(gather, "crowd", lambda folder, models: [folder.name, *models])
    assert gather.table2(tmp_path) == {"1": ["seed-1", "gates", "gates-k10", "vanilla"]}
    made[-1].unlink()
    assert gather.table2(tmp_path) == {}


def test_both_recipes_of_the_crowd_have_the_same_data_and_other_users() -> None:
    gates, paper = load_recipe("demo-crowd"), load_recipe("demo-crowd-paper")
    assert [gates[part] for part in ("prep", "generate")] == [paper[part] for part in ("prep", "generate")]
    ours, theirs = (resolve(TrainConfig, recipe["train"]) for recipe in (gates, paper))
    assert (ours.user_in, ours.user_init, theirs.user_in, theirs.user_init) == ("adapter", "choices", "prompt", "zero")


def test_few_choices_are_compared_with_vanilla_by_seen_users(tmp_path: Path) -> None:
    folder = tmp_path / steps.few_folder(0.1, 5)
    options: dict[str, Any] = {"users": 8, "comparisons": 1, "unseen_fraction": 0.25}
    prlhf.prepare("demo-crowd", out=folder / "data", **options)
    eval_rows = read_prepared(folder / "data").eval
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6}
    for name, seen in {"vanilla": 0.0, "paper-vanilla": 0.5, "paper-choices": 0.75}.items():
        by_user = {row.user_id: seen if row.seen else 0.0 for row in eval_rows}
        (folder / f"accuracy-{name}").mkdir()
        results = {"accuracy_by_user": by_user, "readings": {"seen": rate, "unseen": None, "shuffled": rate}}
        (folder / f"accuracy-{name}" / "results.json").write_text(json.dumps(results))
    found = gather.few_choices(tmp_path)
    assert found == {
        "0.1": {
            "5": {
                "paper-choices": {"seen": rate, "unseen": None, "gain": {"share": 0.25, "low": 0.25, "high": 0.25}},
                "paper-vanilla": {"seen": rate, "unseen": None, "gain": {"share": 0.0, "low": 0.0, "high": 0.0}},
                "vanilla": {"seen": rate, "unseen": None, "gain": {"share": 0.0, "low": 0.0, "high": 0.0}},
            }
        }
    }
    pictures.draw_all({"few_choices": found}, tmp_path)
    assert (tmp_path / "few-choices.png").stat().st_size > 1000
