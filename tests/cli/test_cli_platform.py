"""On Windows one line says where prlhf runs."""

from __future__ import annotations

from typing import Any

import pytest


def test_windows(prlhf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from prlhf_cli import main

    monkeypatch.setattr(main.sys, "platform", "win32")
    result = prlhf("prep", "demo")
    assert result.exit_code == 2
    assert "on Windows, use it within WSL" in result.stderr
