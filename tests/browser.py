"""A page in a real browser, without network.

Chromium is looked for in $PRLHF_CHROMIUM and on the PATH, and is controlled over a pair of pipes (DevTools).
"""

from __future__ import annotations

import base64
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

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"]
FLAGS += [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
]  # the first: no network
SECONDS = 180


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

    def open(self, url: str, look: str = "null") -> Any:
        """What `look` is in the page half a second after all of it was there."""
        self.ask("Page.navigate", url=url)
        while not self.of("Page.loadEventFired"):
            self.events.append(self._next())
        self.evaluate("new Promise(done => setTimeout(done, 500))")
        return self.evaluate(look)

    def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        wait = f"while (!({condition})) await new Promise(done => setTimeout(done, 20))"
        self.evaluate(f"(async () => {{ {wait} }})()")

    def press(self, key: str, **more: Any) -> None:
        """A key, as a person presses it."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        code = {"windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, **code, **(text if kind == "keyDown" else {}), **more
            )

    def type(self, text: str) -> None:
        """A text, where the cursor is."""
        self.ask("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """What is to be seen, as a PNG file."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

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
    process = subprocess.Popen(line, pass_fds=(3, 4), preexec_fn=place, **quiet)  # noqa: PLW1509
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


@contextmanager
def some_browser(profile: Path) -> Iterator[Page]:
    """A page of the browser that is there; without one the test is skipped."""
    named = [os.environ["PRLHF_CHROMIUM"]] if "PRLHF_CHROMIUM" in os.environ else BROWSERS
    program = next(filter(None, map(shutil.which, named)), None)
    if program is None:
        pytest.skip(f"no Chromium: none of {', '.join(named)} is there; `apt install chromium`, or set PRLHF_CHROMIUM")
    with browsing(program, profile) as opened:
        yield opened
