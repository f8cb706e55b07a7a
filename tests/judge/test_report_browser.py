"""The report in a real browser, without network: what responses, users and prompts hold is text there and nothing else,
nothing is fetched, nothing is logged, and examples and bars are to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, some_browser
from judge_rows import row, write

from prlhf.config import JudgeConfig
from prlhf.judge.run import judge_responses

pytestmark = pytest.mark.slow

SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
PROMPT = "</pre></details><style>* { display: none }</style><svg onload=\"document.title='owned'\">"
USER = "<b onmouseover=alert(1)>anna</b><img src=https://example.com/pixel.png>"
COMMAND = "prlhf judge '<iframe src=https://example.com></iframe>'"

LOOK = """({
    title: document.title,
    alive: document.querySelectorAll("script, img, iframe, object, embed, link, b[onmouseover]").length,
    handlers: [...document.querySelectorAll("*")].flatMap(e => [...e.attributes])
        .filter(a => a.name.startsWith("on")).length,
    text: document.body.innerText,
    sides: [...document.querySelectorAll(".sides pre")].filter(e => e.offsetHeight > 0).map(e => e.textContent),
    prompts: [...document.querySelectorAll("details pre")].map(e => e.textContent),
    bars: [...document.querySelectorAll("figure svg path")].filter(e =>
        ["rgb(0, 114, 178)", "rgb(230, 159, 0)"].includes(getComputedStyle(e).fill)
        && e.getBoundingClientRect().width > 2 && e.getBoundingClientRect().height > 2).length,
    pictures: [...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height > 50).length,
})"""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with some_browser(tmp_path / "profile") as opened:
        yield opened


def test_hostile_texts_are_texts(page: Page, tmp_path: Path) -> None:
    a = [row(PROMPT, USER, f"{SCRIPT} and more words"), row("p1", "ben", "short")]
    b = [row(PROMPT, USER, IMAGE), row("p1", "ben", "the longer one of the two")]
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    config = JudgeConfig.model_validate({"judge": "rule:longer", "out": tmp_path / "judged", "bootstrap": 50})
    judge_responses(*files, config, command=COMMAND)
    report = (tmp_path / "judged/report.html").as_uri()
    found = page.open(report, LOOK)
    assert found["title"] == "judged by rule:longer"
    assert (found["alive"], found["handlers"]) == (0, 0)
    assert page.requested() == [report]
    assert page.logged() == []
    assert sorted(found["sides"]) == sorted(one.response for one in (*a, *b))
    assert sorted(found["prompts"]) == sorted([f"text of {PROMPT}", "text of p1"])
    assert all(text in found["text"] for text in (SCRIPT, IMAGE, USER, COMMAND, "the longer one of the two"))
    assert found["pictures"] == 2
    assert found["bars"] >= 2


def test_a_page_that_is_not_safe_is_noticed(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><title>safe</title><p>{SCRIPT}{USER}<script>console.error('no')</script>")
    found = page.open(path.as_uri(), LOOK)
    assert found["title"] == "owned"
    assert found["alive"] == 4
    assert found["handlers"] == 1
    assert page.requested() == [path.as_uri(), "https://example.com/pixel.png"]
    assert len(page.logged()) == 2
