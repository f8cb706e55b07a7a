"""`prlhf adapt --ask` at a terminal and without one."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pexpect
import pytest
from test_ask import rows_of, write_pool
from typer.testing import CliRunner

from prlhf.adapt.ask import PairQuestion
from prlhf_cli import asking
from prlhf_cli.main import app

QUESTION = PairQuestion(1, "a prompt \x1b[31m", "the left one", "the right one", 0.5, 1.0, False)


@pytest.fixture
def run(gated: Path, tmp_path: Path) -> Path:
    write_pool(tmp_path / "pool.jsonl")
    return Path(shutil.copytree(gated, tmp_path / "run"))


def words(run: Path, *more: str) -> list[str]:
    here = run.parent
    given = ["--ask", "--user", "new", "--pool", str(here / "pool.jsonl"), "--answers", str(here / "a.jsonl")]
    return ["adapt", str(run), *given, "--device", "cpu", "--sure", "0", *more]


def lines(run: Path) -> list[Any]:
    return [json.loads(line) for line in (run.parent / "a.jsonl").read_text().splitlines()]


def pressed(keys: bytes, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> tuple[str, str]:
    """What somebody answers who presses these keys, and what was shown."""
    ours, theirs = pty.openpty()
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdin", os.fdopen(theirs, "r"))
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", str(width))
    late = threading.Timer(0.2, os.write, (ours, keys))  # after the terminal is in raw mode
    late.start()
    try:
        return asking.on_terminal(QUESTION), shown.getvalue()
    finally:
        late.join()
        os.close(ours)


@pytest.mark.parametrize(
    ("keys", "reply"),
    [
        (b"1", "left"), (b"2", "right"), (b"\x1b[D", "left"), (b"\x1b[C", "right"), (b"T", "tie"), (b"s", "skip"),
        (b"u", "undo"), (b"q", "stop"), (b"\x04", "stop"),
    ],
)  # fmt: skip
def test_keys(keys: bytes, reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pressed(keys, monkeypatch)[0] == reply


def test_side_by_side_or_one_below_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a terminal would take for a command is not sent to it."""
    _, wide = pressed(b"1", monkeypatch)
    assert re.search("the left one.*the right one", wide)
    _, narrow = pressed(b"1", monkeypatch, width=60)
    assert not re.search("the left one.*the right one", narrow)
    assert re.search("(?s)the left one.*the right one", narrow)
    assert "\x1b[31m" not in wide


def test_ctrl_c_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        pressed(b"\x03", monkeypatch)


def test_lines_of_a_script(run: Path) -> None:
    """Each question is a line of JSON; a wrong line keeps the answers before it."""
    done = CliRunner().invoke(app, words(run, "--json"), input="1\n2\nu\nt\nq\n")
    assert done.exit_code == 0, done.stderr
    *questions, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert [question["number"] for question in questions] == [1, 2, 3, 2, 3]
    assert questions[1]["left"] == questions[3]["left"]
    assert (summary["asked"], summary["ended"], summary["users"][0]["choices"]) == (2, "stopped", 3)
    assert len(lines(run)) == 3
    bad = CliRunner().invoke(app, words(run), input="1\nwhat\n")
    assert bad.exit_code == 2
    assert "'what' is not an answer" in bad.stderr
    assert len(lines(run)) == 4


def test_what_is_said_at_the_end(run: Path) -> None:
    done = CliRunner().invoke(app, words(run), input="1\n" * 3)
    assert "3 answers in" in done.stdout
    assert "the user would now make" in done.stdout
    assert "uncertainty" in done.stdout
    nothing = CliRunner().invoke(app, words(run, "--user", "other"), input="s\n")
    assert "nothing was changed" in nothing.stdout


@pytest.mark.parametrize("given", [None, subprocess.DEVNULL])
def test_nobody_is_there(run: Path, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal, and nothing to read: one line, before anything is loaded."""
    if given is None:
        done = CliRunner().invoke(app, words(run), input="")
        assert (done.exit_code, done.stderr.count("error:")) == (2, 1)
        assert "there is no terminal to ask on" in done.stderr
    else:
        with Path(os.devnull).open() as nothing, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", nothing)
            with pytest.raises(Exception, match="there is no terminal to ask on"):
                asking.answerer()
    assert not (run.parent / "a.jsonl").exists()


@pytest.mark.slow
def test_killed_and_continued(run: Path) -> None:
    before = rows_of(run)
    command = [sys.executable, "-m", "prlhf_cli.main", *words(run)]

    def begin() -> Any:
        return pexpect.spawn(command[0], command[1:], dimensions=(50, 120), timeout=240, encoding="utf-8")

    first = begin()
    for number, key in ((1, "1"), (2, "t"), (3, "u"), (2, "s"), (2, "\x1b[C")):
        first.expect(f"question {number} ")
        first.expect("q: stop")
        first.send(key)
    first.expect("question 3 ")
    first.kill(9)
    first.wait()
    assert len(lines(run)) == 2
    assert rows_of(run).numpy().tobytes() == before.numpy().tobytes()
    second = begin()
    second.expect("question 1 ")
    second.expect("q: stop")
    second.send("2")
    second.expect("question 2 ")
    second.sendintr()
    second.expect("the same command continues")
    second.expect(pexpect.EOF)
    second.wait()
    assert second.exitstatus == 130
    assert len(lines(run)) == 3
    third = begin()
    third.expect("question 1 ")
    third.send("q")
    third.expect("0 answers in")
    third.expect(pexpect.EOF)
    third.wait()
    assert third.exitstatus == 0
    assert rows_of(run)[:3].numpy().tobytes() == before.numpy().tobytes()
    assert len(rows_of(run)) == 4
