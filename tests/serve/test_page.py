"""The page in a real browser: a conversation by keyboard alone, a choice that arrives, and what it looks like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from browser import Page, some_browser
from running_server import PROMPT, Running, serving

pytestmark = pytest.mark.slow

PICTURES = os.environ.get("PRLHF_PICTURES")  # a folder to look at
WAITING = "!document.getElementById('choose-left').disabled || document.getElementById('status').className === 'error'"
UNNAMED = """[...document.querySelectorAll("button, input, textarea")].filter(e => e.offsetHeight > 0
    && !(e.labels && e.labels.length) && !e.textContent.trim()).map(e => e.id)"""
WIDE = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture
def running(gated: Path, tmp_path: Path) -> Iterator[Running]:
    run = Path(shutil.copytree(gated, tmp_path / "run"))
    with serving(run, adapt_every=0) as server:
        yield server


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with some_browser(tmp_path / "profile") as opened:
        yield opened


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def pictured(page: Page, name: str) -> None:
    if PICTURES:
        page.picture(Path(PICTURES) / f"{name}.png")


def size(page: Page, width: int, height: int) -> None:
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)


def test_a_person_chooses_by_keyboard(page: Page, running: Running) -> None:
    size(page, 1000, 700)
    page.open(f"{running.url}/")
    assert page.evaluate("[...document.querySelectorAll('#users option')].map(o => o.value)") == ["ann", "bob", "cat"]
    assert page.evaluate("document.title") == "tiny"
    pictured(page, "start")
    page.press("Tab")
    assert focused(page) == "user"
    page.type("cat")
    while focused(page) != "prompt":
        page.press("Tab")
    page.type(PROMPT)
    page.press("Enter")
    page.until(WAITING)
    assert focused(page) == "choose-left"
    texts = page.evaluate("['left', 'right'].map(id => document.getElementById(id).textContent)")
    assert texts[0] != texts[1]
    assert page.evaluate(UNNAMED) == []
    pictured(page, "choice")
    size(page, 360, 740)
    assert page.evaluate(WIDE) is False
    pictured(page, "phone")
    page.press("2")
    page.until("document.getElementById('status').textContent.startsWith('Kept. Choices of cat: 1, of which 0')")
    (kept,) = running.service.keeper.store.choices()
    assert (kept.user_id, kept.prompt, [kept.rejected, kept.chosen]) == ("cat", PROMPT, texts)
    assert focused(page) == "prompt"
    assert page.evaluate("document.getElementById('prompt').value") == ""
    shown = page.evaluate("[...document.querySelectorAll('#talk li')].map(e => e.textContent)")
    assert shown == [PROMPT, texts[1]]
    size(page, 1000, 700)
    pictured(page, "kept")
    assert all(url.startswith(running.url) for url in page.requested())
    assert page.logged() == []


def test_a_person_watches_the_model_change(
    page: Page, gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prlhf.serve.learning.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    run = Path(shutil.copytree(gated, tmp_path / "run"))

    def text(of: str) -> str:
        return str(page.evaluate(f"document.getElementById('{of}').textContent"))

    def choose(number: int) -> None:
        page.type(f"{PROMPT} {number}")
        page.press("Enter")
        page.until(WAITING)
        page.press("1")
        page.until(f"document.getElementById('known').textContent.startsWith('{number} choices')")

    with serving(run, adapt_every=2, max_tokens=24) as running:
        size(page, 1000, 900)
        page.open(f"{running.url}/")
        assert page.evaluate("document.getElementById('person').hidden")
        page.press("Tab")
        page.type("dan")
        while focused(page) != "prompt":
            page.press("Tab")
        page.until("!document.getElementById('person').hidden")
        assert text("known") == "0 choices, 0 of them learned; not known yet, and answered as the generic user."
        assert page.evaluate("document.getElementById('versions').hidden")
        for number in range(1, 5):
            choose(number)
            if number % 2 == 0:
                page.until(f"document.getElementById('known').textContent.includes('version {number // 2}')")
        page.until("document.getElementById('now').textContent.length > 1")
        assert text("known").startswith("4 choices, 4 of them learned; version 2, of ")
        assert text("status") == "The model of dan has changed: it is learned from 4 choices now."
        assert (text("before-name"), text("now-name")) == ("Before: 2 choices", "Now: 4 choices")
        asked = {"prompt": f"{PROMPT} 4", "user": "dan", "temperature": 0, "max_tokens": 24}
        for version, of in ((1, "before"), (2, "now")):
            answer = httpx.post(f"{running.url}/v1/completions", json=asked | {"prlhf_version": version}, timeout=60)
            assert answer.json()["choices"][0]["text"] == text(of)
        versions = httpx.get(f"{running.url}/v1/users/dan").json()["versions"]
        before, now = (f"{one['uncertainty']:.2f}" for one in versions)
        assert text("uncertainty-text") == f"{now} (before: {before})"
        assert page.evaluate(UNNAMED) == []
        pictured(page, "changed")
        size(page, 360, 740)
        assert page.evaluate(WIDE) is False
        page.evaluate("document.getElementById('person').scrollIntoView()")
        pictured(page, "changed-phone")
        page.evaluate("document.getElementById('undo').focus()")
        page.press("Enter")
        assert text("undo") == "Really undo 2 choices?"
        assert len(httpx.get(f"{running.url}/v1/users/dan").json()["versions"]) == 2
        page.press("Enter")
        page.until("document.getElementById('status').textContent === 'Version 2 of dan was undone.'")
        assert text("known").startswith("4 choices, 2 of them learned; version 1, of ")
        assert page.evaluate("document.getElementById('example').hidden")
        pictured(page, "undone")
        assert page.logged() == []


def test_errors_and_texts_of_others_are_texts(page: Page, running: Running) -> None:
    size(page, 1000, 700)
    page.open(f"{running.url}/")
    page.evaluate("document.getElementById('prompt').focus()")
    page.type("<img src=x onerror=\"document.title='owned'\"> " + "word " * 300)
    page.press("Enter")
    page.until("document.getElementById('status').className === 'error'")
    assert "tokens" in page.evaluate("document.getElementById('status').textContent")
    assert page.evaluate("document.getElementById('prompt').value").startswith("<img src=x")
    pictured(page, "error")
    page.evaluate("document.getElementById('prompt').value = '<b>bold</b>'")
    page.press("Enter")
    page.until(WAITING)
    page.press("0")
    assert page.evaluate("document.querySelectorAll('#talk b, img').length") == 0
    assert page.evaluate("document.title") == "tiny"
    assert running.service.keeper.store.choices() == []


def test_the_files_of_the_page(running: Running) -> None:
    for path, kind in (
        ("", "text/html"),
        ("page.css", "text/css"),
        ("page.js", "text/javascript"),
        ("person.js", "text/javascript"),
    ):
        answer = httpx.get(f"{running.url}/{path}")
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http" not in answer.text
