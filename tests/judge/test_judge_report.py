"""report.html: what it shows, and that responses, users and prompts are only text in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from judge_rows import MakeConfig, row, write
from scripted import prefers, serving, verdict

from prlhf.config import JudgeConfig
from prlhf.judge.run import calibrate_judges, judge_responses

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" {{ 7 * 7 }} $x^2$'
USER = "<b>ben</b> & $co_"


class Tags(HTMLParser):
    """The tags of a page, what they load, and their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href") and not str(v).startswith("#")]
        self.loads += [str(v) for k, v in attrs if k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def evil(tmp_path: Path) -> tuple[Path, Path]:
    a = [row("p", USER, f"{EVIL} A"), row("q", USER, "short")]
    return write(tmp_path / "a.jsonl", a), write(
        tmp_path / "b.jsonl", [row("p", USER, "b"), row("q", USER, f"{EVIL} B")]
    )


def test_everything_stays_text(evil: tuple[Path, Path], llm: MakeConfig, tmp_path: Path) -> None:
    longer = prefers(len)

    def script(body: dict, number: int) -> object:  # type: ignore[type-arg]
        return verdict(body, _choice(longer(body, number)), EVIL)

    with serving(script) as server:  # type: ignore[arg-type]
        judge_responses(*evil, llm(server.url, judge="llm,rule:longer"), command=f"prlhf judge {EVIL}")
    page = (tmp_path / "judged/report.html").read_text()
    tags = Tags(page)
    assert not tags.names & {"script", "img", "link", "iframe", "object"}
    assert tags.loads == []
    assert tags.text.count(EVIL) == 3  # the command and two responses
    assert tags.text.count("<script>alert(1)</script>") == 3 + 4  # and the reason of four answers, as JSON
    assert "49" not in re.findall(r"quotes.{0,20}", page)
    assert USER in tags.text
    assert "<b>ben" not in page
    assert {"svg", "table"} <= tags.names


def _choice(reply: object) -> str:
    import json

    return str(json.loads(reply.body["choices"][0]["message"]["content"])["verdict"])  # type: ignore[attr-defined]


def test_what_a_reader_should_know_is_there(evil: tuple[Path, Path], tmp_path: Path) -> None:
    judge_responses(*evil, JudgeConfig(judge="rule:longer,rule:shorter", out=tmp_path / "judged", bootstrap=50))
    text = " ".join(Tags((tmp_path / "judged/report.html").read_text()).text.split())
    for part in (
        "Judged by rule:longer,rule:shorter",
        "1 wins, 0 ties, 1 losses",
        "2 samples cannot tell A from B",
        "ties count for both (PRISM)",
        "at equal length",
        "Cohen's kappa",
        "rule:longer and rule:shorter20.0 %",
        "Examples",
    ):
        assert part in text


def test_calibration_alone(prepared: Path, tmp_path: Path) -> None:
    calibrate_judges(JudgeConfig(judge="rule:longer", calibrate=prepared, out=tmp_path / "judged", bootstrap=50))
    text = Tags((tmp_path / "judged/report.html").read_text()).text
    assert "does the judge choose as people did?" in text
    assert "Examples" not in text


def test_many_users_fit(tmp_path: Path) -> None:
    a = [row("p", f"user-{i}", "x" * (1 + i % 3)) for i in range(300)]
    b = [row("p", f"user-{i}", "x y") for i in range(300)]
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    judge_responses(*files, JudgeConfig(judge="rule:longer", out=tmp_path / "judged", bootstrap=50))
    page = (tmp_path / "judged/report.html").read_text()
    assert "260 more users are in results.json" in page
    assert len(page) < 400_000
