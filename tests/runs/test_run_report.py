"""report.html of a run: what it shows, that texts stay texts, and that it is written whatever the run is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from prlhf import api
from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.parse import json_text
from prlhf.runs.pictures import POINTS, smoothed, thinned
from prlhf.runs.plane import planes, principal
from prlhf.runs.report import write_run_report
from prlhf.start_training import start
from prlhf.train import metrics
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" {{ 7 * 7 }} $x^2$'


class Tags(HTMLParser):
    """The tags of a page, what they load, its links, its text, and its pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [str(v) for k, v in attrs if tag == "a" and k == "href"]
        self.loads += [str(v) for k, v in attrs if k == "src" or (k == "xlink:href" and not str(v).startswith("#"))]
        self.loads += [str(v) for k, v in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> int:
        return self.names.count("svg")


def page_of(path: Path) -> Tags:
    return Tags(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    """A run by the function of the command, with evaluations, samples and the best model kept."""
    folder = tmp_path_factory.mktemp("watched") / "run $1 & more"
    start(make_config(folder, eval_every=2, sample_every=3, sample_users=2, stop_metric="margin_mean", nll=0.1))
    return folder


def test_the_page_of_a_finished_run(watched: Path) -> None:
    page = page_of(watched / "report.html")
    best = json.loads((watched / "results.json").read_text())["best"]
    assert page.pictures == 4 + 1 + 1  # curves; users' accuracy; users in two dimensions
    for heading in ("loss, nats", "log-ratio to the reference, nats", "first component", "accuracy, held out"):
        assert heading in page.text
    assert f"The model is that of step {best['step']}, the best evaluation by margin_mean" in " ".join(
        page.text.split()
    )
    assert "finished after 6 steps" in page.text
    assert {"recipe.yaml", "results.json", "metrics.jsonl", "samples.jsonl", "model/README.md"} == set(page.links)
    for row in metrics.read(watched / "samples.jsonl"):
        assert row["response"].strip() in page.text
    for user in ("ann", "bob", "cat", "zoe"):
        assert user in page.text
    assert "svg" in page.names
    assert not set(page.names) & {"script", "img", "link", "iframe", "object"}
    assert page.loads == []


def test_values_that_were_set_are_bold(watched: Path) -> None:
    text = re.sub(r"\s", "", (watched / "report.html").read_text())
    assert "<td>eval_every</td><td><b>2</b></td>" in text
    assert "<td>beta</td><td>0.1</td>" in text
    assert "<td>cluster_lr</td>" not in text  # not used


def test_everything_stays_text(watched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(watched, run)
    name = "ann" + EVIL
    rows = [row | {"user_id": name, "response": EVIL, "prompt": EVIL} for row in metrics.read(run / "samples.jsonl")]
    (run / "samples.jsonl").write_text("".join(json_text(row) + "\n" for row in rows))
    results = json.loads((run / "results.json").read_text())
    for key in ("accuracy", "margin", "generic"):
        values = results["eval"][f"{key}_by_user"]
        results["eval"][f"{key}_by_user"] = {name if user == "ann" else user: value for user, value in values.items()}
    results["best"]["metric"] = EVIL
    (run / "results.json").write_text(json.dumps(results))
    page = page_of(write_run_report(run))
    assert not set(page.names) & {"script", "img", "link", "iframe", "object"}
    assert page.loads == []
    assert page.text.count(EVIL) >= 6
    assert "49" not in re.findall(r"quotes. (\d+)", page.text)


def test_a_run_that_goes_on(make_config: MakeConfig, tmp_path: Path) -> None:
    """Written elsewhere, the page links to the run; without a model it has no users in two dimensions."""
    run = tmp_path / "runs/one two"
    train(make_config(run, max_steps=2, eval_every=1))
    shutil.rmtree(run / "model")
    (run / "results.json").unlink()
    api.show_run(run, html=tmp_path / "page.html")
    page = page_of(tmp_path / "page.html")
    assert "stopped after 2 steps" in page.text
    assert f"prlhf train --resume --out {run}" in page.text
    assert page.links == ["runs/one%20two/recipe.yaml", "runs/one%20two/metrics.jsonl"]
    assert not (run / "report.html").exists()
    assert page.pictures == 4 + 1


@pytest.mark.parametrize("objective", ["sft", "rm"])
def test_other_objectives(make_config: MakeConfig, tmp_path: Path, objective: str) -> None:
    start(make_config(tmp_path / "run", objective=objective, max_steps=2, eval_every=1))
    page = page_of(tmp_path / "run/report.html")
    assert page.pictures == {"sft": 2, "rm": 3 + 1 + 1}[objective]  # loss and likelihood; loss, accuracy, margin, users
    assert "log-ratio" not in page.text


def test_adapters_per_user(make_config: MakeConfig, tmp_path: Path) -> None:
    start(make_config(tmp_path / "run", user_model="uniform", user_tokens=0, max_steps=2), per_user=True)
    page = page_of(tmp_path / "run/report.html")
    assert page.links == ["recipe.yaml", "results.json", *(f"users/{i}/report.html" for i in (1, 2, 3))]
    assert (tmp_path / "run/users/2/report.html").is_file()
    assert page.pictures == 1


def test_a_page_that_cannot_be_written_is_a_warning(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is finished all the same."""
    from prlhf import start_training
    from prlhf.progress import Silent

    def full(folder: Path) -> None:
        raise PrlhfError(f"cannot write {folder}", "free some space")

    lines: list[str] = []
    progress: Any = Silent()
    progress.note = lines.append
    monkeypatch.setattr(start_training, "write_run_report", full)
    assert start(make_config(tmp_path / "run", max_steps=1), progress=progress)["steps"] == 1
    assert any(line.startswith("warning: the run is finished, but not its page") for line in lines)


def test_only_pages_are_replaced(watched: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PrlhfError, match=r"notes.txt exists and is not a page of prlhf runs"):
        api.show_run(watched, html=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    for _ in range(2):
        api.show_run(watched, html=tmp_path / "page.html")


# ---- what is drawn ----


def test_principal_components() -> None:
    """Points on a tilted plane come back as they are, up to the plane's turn; the variance is that of its axes."""
    torch.manual_seed(0)
    flat = torch.randn(30, 2, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    flat = flat - flat.mean(0)
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0][:2]
    points, shares = principal(flat @ turn + 5.0)
    torch.testing.assert_close(points @ points.T, flat @ flat.T)
    variance = torch.linalg.svdvals(flat).square()
    torch.testing.assert_close(torch.tensor(shares, dtype=torch.float64), variance / variance.sum())
    again, _ = principal(flat @ turn + 5.0)
    assert torch.equal(again, points)
    line, share = principal(torch.arange(4.0)[:, None])
    assert share == [1.0, 0.0]
    assert line[:, 1].tolist() == [0.0] * 4
    assert principal(torch.ones(3, 4))[1] == [0.0, 0.0]  # all alike


@pytest.mark.parametrize(
    ("options", "tables"),
    [({}, ["offsets.weight"]), ({"user_model": "cluster"}, ["weights.weight"]),
     ({"user_in": "both"}, ["offsets.weight", "gates.offsets.weight"]),
     ({"user_in": "adapter", "user_model": "cluster"}, ["gates.weights.weight"]),
     ({"user_model": "uniform"}, [])],
)  # fmt: skip
def test_the_users_of_every_user_model(
    make_config: MakeConfig, tmp_path: Path, options: dict[str, Any], tables: list[str]
) -> None:
    from prlhf.model.checkpoint import build_policy, save_policy

    config: TrainConfig = make_config(tmp_path, **options)
    policy = build_policy(config, ["ann", "bob", "cat"], {})
    (tmp_path / "model").mkdir()
    save_policy(policy, tmp_path / "model")
    found = planes(tmp_path / "model", config)
    assert [one.table for one in found] == tables
    for one in found:
        without_generic = one.table == "gates.weights.weight"
        assert one.users == (["ann", "bob", "cat"] if without_generic else ["generic", "ann", "bob", "cat"])
        rows = dict(policy.model.users.state_dict())[one.table]
        rows = rows.softmax(-1) if "weights" in one.table else rows
        if len(rows) == len(one.users):
            torch.testing.assert_close(torch.cdist(one.points, one.points)[-1, -2], (rows[-1] - rows[-2]).norm())


def test_means_and_fewer_points() -> None:
    assert smoothed([1.0, 5.0]) == [1.0, 5.0]
    values = [float(i % 2) for i in range(100)]
    assert smoothed(values)[50] == pytest.approx(sum(values[48:53]) / 5)
    many = thinned(list(range(5000)))
    assert (len(many), many[0], many[-1]) == (POINTS, 0, 4999)
