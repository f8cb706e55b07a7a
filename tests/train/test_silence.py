"""Workers that hang: the command ends in a line, and does not wait forever."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from prlhf.errors import PrlhfError
from prlhf.progress import SILENT
from prlhf.train.on_ray import Heard, Stopping


def test_a_run_that_hangs_after_the_last_evaluation_is_ended() -> None:
    released, heard = threading.Event(), Heard(SILENT)

    def fit() -> str:
        heard.start("evaluating", 2)
        heard.advance(2)
        heard.finish()
        released.wait(60)  # what Ray's barrier does when a worker never comes
        return "never"

    began = time.monotonic()
    with pytest.raises(PrlhfError) as told:
        Stopping(None, heard, 0.02, Path("runs/two")).wait_for(fit)
    released.set()
    assert time.monotonic() - began < 30
    assert told.value.message == (
        "the workers have said nothing for 0.02 minutes, since the end of evaluating: one of them hangs"
    )
    assert "prlhf train --resume --out runs/two" in str(told.value.hint)


@pytest.mark.parametrize("minutes", [0.0, 0.02])
def test_a_slow_run_that_says_something_is_not(minutes: float) -> None:
    """Three seconds in all, with a sign of life every half; and without any, where the watch is off."""
    heard = Heard(SILENT)

    def fit() -> str:
        for _ in range(6):
            time.sleep(0.5)
            if minutes:
                heard.advance()
        return "done"

    assert Stopping(None, heard, minutes, Path("runs/two")).wait_for(fit) == "done"
