"""report.html and the leaderboard, from trials that did not run."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prlhf.config import SweepConfig
from prlhf.sweep.report import write_sweep_report
from prlhf.sweep.search import search_for
from prlhf.sweep.space import parse_space
from prlhf.sweep.trials import best_trial
from prlhf_cli.bars import Leaderboard

SHARED = {
    "data_sets_prepared": 1,
    "before_trials": {"computed": 52, "cached": 7},
    "in_trials": {"computed": 0, "cached": 118},
    "base_responses": 0,
}
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def search() -> Any:
    """Six trials over a range, a logarithmic one, names and numbers: four done, one stopped, one failed."""
    space = parse_space(["alpha=0.1:0.9", "lr=1e-5:1e-2:log", "k=5,10", "cluster_weights=softmax,linear"])
    sweep = SweepConfig(space={}, trials=6, metric="eval/accuracy_macro")
    found = search_for(space, {"train": {"user_model": "cluster"}}, sweep, [], False)
    for number, trial in enumerate(found.trials):
        trial.status, trial.result = "done", {"eval/accuracy_macro": 0.5 + number / 10, "steps": 6}
    found.trials[4].status = "stopped"
    found.trials[5].status, found.trials[5].result = "failed", None
    found.trials[5].error = f"ValueError: {EVIL}"
    return found


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_report_stands_alone_and_escapes(search: Any, tmp_path: Path) -> None:
    best = best_trial(search.trials, "eval/accuracy_macro", "max")
    write_sweep_report(tmp_path / "report.html", search, best, SHARED, f"prlhf sweep --space 'x={EVIL}'")
    page = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.tags]
    assert "script" not in names
    assert names.count("svg") == 5  # one for each of four keys, and all keys side by side
    assert not {"link", "img", "iframe"} & set(names)
    loaded = [value for _, given in tags.tags for key, value in given.items() if key in ("src", "href", "xlink:href")]
    assert all(value and value.startswith("#") for value in loaded)  # nothing from elsewhere
    ids = [given["id"] for _, given in tags.tags if "id" in given]
    used = re.findall(r"url\(#([^)]+)\)", page)
    assert set(used) <= set(ids)
    assert "6 trials: 4 done, 1 stopped, 1 failed" in page
    assert "52 (prompt, response) pairs computed" in page
    assert "the trials themselves computed 0" in " ".join(page.split())
    assert page.count("<tr") == 1 + 6 + 1  # a head, the trials, the error
    assert best
    assert best.name == "trial-003"


def test_no_trial_has_a_number(search: Any, tmp_path: Path) -> None:
    for trial in search.trials:
        trial.status, trial.result = "failed", None
    write_sweep_report(tmp_path / "report.html", search, None, SHARED, "")
    page = (tmp_path / "report.html").read_text()
    assert "No trial is done with a number" in page
    assert "<svg" not in page


def test_the_leaderboard_says_how_far_it_is(search: Any, capsys: pytest.CaptureFixture[str]) -> None:
    board = Leaderboard()
    done, search.trials[3].status = search.trials[3], "planned"
    board.begin(search.sweep, search.trials, search.total)
    done.status = "running"
    board.changed(search.trials, done)
    assert capsys.readouterr().err == ""
    done.status = "done"
    board.changed(search.trials, done)
    said = capsys.readouterr().err
    assert said.startswith("6/6 trials, ")
    assert "trial-003 (alpha=" in said
    assert said.rstrip().endswith("done eval/accuracy_macro 0.8000")
    board.end()


def test_the_table_has_the_best_first_and_what_runs(search: Any) -> None:
    from rich.console import Console

    board = Leaderboard()
    search.trials[0].status, search.trials[0].result = "running", {"step": 3}
    board.begin(search.sweep, search.trials, search.total)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(board._table())
    lines = [line for line in console.export_text().splitlines() if "trial-" in line]
    assert [re.findall(r"trial-00\d", line)[0][-1] for line in lines] == ["3", "2", "1", "4", "0", "5"]
    assert "running" in lines[4]
