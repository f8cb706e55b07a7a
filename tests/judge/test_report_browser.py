"""The report in a real browser, without network: what responses, users and prompts hold is text there and nothing else,
nothing is fetched, nothing is logged, and examples and bars are to be seen.

Chromium is looked for in $PRLHF_CHROMIUM and on the PATH, and is controlled over a pair of pipes (DevTools)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from judge_rows import row, write

from prlhf.config import JudgeConfig
from prlhf.judge.run import judge_responses

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"]  # the first: no network
SECONDS = 60

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


class Page:
    """A page of a browser, and what happens in it."""

    def __init__(self, to: BinaryIO, back: BinaryIO) -> None:
        self._to, self._back, self._last = to, back, 0
        self._session: dict[str, str] = {}
        self.events: list[dict[str, Any]] = []
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> Any:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != self._last:
            self.events.append(answer)
        assert "result" in answer, answer
        return answer["result"]

    def open(self, url: str) -> dict[str, Any]:
        """What is in the page half a second after all of it was there."""
        self.ask("Page.navigate", url=url)
        while not self.of("Page.loadEventFired"):
            self.events.append(self._next())
        self.evaluate("new Promise(done => setTimeout(done, 500))")
        found: dict[str, Any] = self.evaluate(LOOK)
        return found

    def evaluate(self, code: str) -> Any:
        answer = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def of(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def requested(self) -> list[str]:
        return [event["request"]["url"] for event in self.of("Network.requestWillBeSent")]

    def logged(self) -> list[dict[str, Any]]:
        return self.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")

    def _next(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        message: dict[str, Any] = json.loads(content)
        return message


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Page]:
    """Chromium reads commands from its descriptor 3 and answers on 4."""
    pairs = os.pipe(), os.pipe()
    reads, answers = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (pairs[0][0], pairs[1][1]))

    def place() -> None:
        os.dup2(reads, 3)
        os.dup2(answers, 4)

    line = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(line, pass_fds=(3, 4), preexec_fn=place, **quiet)  # noqa: PLW1509  # noqa: PLW1509
    for end in (reads, answers, pairs[0][0], pairs[1][1]):
        os.close(end)
    too_long = threading.Timer(SECONDS, process.kill)
    too_long.start()
    try:
        with open(pairs[0][1], "wb") as to, open(pairs[1][0], "rb") as back:
            page = Page(to, back)
            yield page
            page.ask("Browser.close")
            process.wait(SECONDS)
    finally:
        too_long.cancel()
        process.kill()
        process.wait()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    named = [os.environ["PRLHF_CHROMIUM"]] if "PRLHF_CHROMIUM" in os.environ else BROWSERS
    program = next(filter(None, map(shutil.which, named)), None)
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(named)} is there; `apt install chromium`, or set PRLHF_CHROMIUM")
    with browsing(program, tmp_path / "profile") as opened:
        yield opened


def test_hostile_texts_are_texts(page: Page, tmp_path: Path) -> None:
    a = [row(PROMPT, USER, f"{SCRIPT} and more words"), row("p1", "ben", "short")]
    b = [row(PROMPT, USER, IMAGE), row("p1", "ben", "the longer one of the two")]
    files = write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
    config = JudgeConfig.model_validate({"judge": "rule:longer", "out": tmp_path / "judged", "bootstrap": 50})
    judge_responses(*files, config, command=COMMAND)
    report = (tmp_path / "judged/report.html").as_uri()
    found = page.open(report)
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
    found = page.open(path.as_uri())
    assert found["title"] == "owned"
    assert found["alive"] == 4
    assert found["handlers"] == 1
    assert page.requested() == [path.as_uri(), "https://example.com/pixel.png"]
    assert len(page.logged()) == 2
