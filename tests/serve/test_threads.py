"""Whoever loads a model is gone when others write with it: their threads of OpenMP would slow these down."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from running_server import serving

from prlhf.model import checkpoint
from prlhf.serve import engine
from prlhf.serve.run import in_a_thread


def test_what_a_thread_returns_or_raises() -> None:
    assert in_a_thread(threading.current_thread).is_alive() is False
    with pytest.raises(ZeroDivisionError):
        in_a_thread(lambda: 1 / 0)


def test_no_thread_that_loaded_is_left(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[threading.Thread] = []

    def spied(call: Any) -> Any:
        def spy(*given: Any, **more: Any) -> Any:
            loaded.append(threading.current_thread())
            return call(*given, **more)

        return spy

    monkeypatch.setattr(checkpoint, "load_base", spied(checkpoint.load_base))
    monkeypatch.setattr(engine, "Seats", spied(engine.Seats))
    with serving(trained, adapt_every=0):
        assert len(loaded) == 2
        assert not any(thread.is_alive() for thread in loaded)
