"""A run with gates, made once; tests copy it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any]) -> Path:
    from prlhf.train.run import train

    folder = tmp_path_factory.mktemp("runs") / "gated"
    train(make_config(folder, user_in="adapter", lora_r=4))
    return folder
