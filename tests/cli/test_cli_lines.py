"""Progress without a terminal: lines in a log, also while nothing happens."""

from __future__ import annotations

import re
import time

import pytest

from prlhf_cli.lines import Lines, Phase, duration


def wait_for(lines: int, shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + 30
    while len(shown) < lines and time.monotonic() < until:
        shown += capsys.readouterr().err.splitlines()
        time.sleep(0.01)


def test_a_phase_is_a_line_at_its_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("evaluating", 4)
    lines.advance(3)
    lines.note("a [note]")
    lines.advance(1, loss=0.25)
    lines.finish()
    lines.finish()
    lines.advance(1)  # after the end: nothing
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 0/4", "a [note]", "evaluating: 4/4 in 0 s, loss 0.250",
    ]  # fmt: skip


def test_lines_come_while_a_step_takes_long(capsys: pytest.CaptureFixture[str]) -> None:
    """By the clock and not by the steps; after the end there are no more."""
    lines, shown = Lines(every=0.02), list[str]()
    lines.start("training", 10)
    lines.advance(4)
    wait_for(4, shown, capsys)
    lines.finish()
    shown += capsys.readouterr().err.splitlines()
    assert shown[0] == "training: 0/10"
    assert "training: 4/10" in shown[1:-1]
    assert re.fullmatch(r"training: 4/10 in \d+ s", shown[-1])
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_rate_and_time_left_do_not_count_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed at step 100 of 200 makes 2 steps per second, not the 102 of its first second."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    phase = Phase("training", 200)
    phase.advance(100, {})
    assert phase.line() == "training: 100/200"
    now[0] += 5
    phase.advance(10, {"loss": 0.5})
    assert phase.line() == "training: 110/200, 2/s, 45 s left, loss 0.500"
    now[0] += 5
    phase.advance(10, {"accuracy": 0.75})
    assert phase.line() == "training: 120/200, 2/s, 40 s left, loss 0.500, accuracy 0.750"
    assert phase.last_line() == "training: 120/200 in 10 s, loss 0.500, accuracy 0.750"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min"), (-1, "0 s")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
