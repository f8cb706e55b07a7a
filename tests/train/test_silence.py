"""Workers that hang: the command ends with one line, and does not wait without limit."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from prlhf.errors import PrlhfError
from prlhf.progress import SILENT
from prlhf.train.on_ray import LastReport, Waiting


def test_a_run_that_hangs_after_the_last_evaluation_is_ended() -> None:
    released, last = threading.Event(), LastReport(SILENT)

    def fit() -> str:
        last.start("evaluating", 2)
        last.advance(2)
        last.finish()
        released.wait(60)  # what Ray's barrier does when a worker never comes
        return "never"

    began = time.monotonic()
    with pytest.raises(PrlhfError) as error:
        Waiting(None, last, 0.02, Path("runs/two")).wait_for(fit)
    released.set()
    assert time.monotonic() - began < 30
    assert error.value.message == (
        "the workers have reported nothing for 0.02 minutes, since the end of evaluating: one of them hangs"
    )
    assert "prlhf train --resume --out runs/two" in str(error.value.hint)


@pytest.mark.parametrize("minutes", [0.0, 0.02])
def test_a_slow_run_that_reports_something_is_not(minutes: float) -> None:
    """Three seconds in all, with a sign of life every half; and without any, where the watch is off."""
    last = LastReport(SILENT)

    def fit() -> str:
        for _ in range(6):
            time.sleep(0.5)
            if minutes:
                last.advance()
        return "done"

    assert Waiting(None, last, minutes, Path("runs/two")).wait_for(fit) == "done"
