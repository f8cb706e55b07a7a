"""A server of the run with individual users, and what `generate` writes for its users alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import PROMPT, Running, serving


@pytest.fixture(scope="session")
def trained(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that other tests share: a server keeps choices beside its run."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("served") / "individual"))


@pytest.fixture(scope="module")
def tiny(trained: Path) -> Iterator[Running]:
    with serving(trained) as running:
        yield running


@pytest.fixture(scope="session")
def alone(trained: Path) -> Callable[..., str]:
    """alone("ann", prompt, max_new_tokens=8): what the library writes for a user, one at a time; greedy by default."""
    import prlhf

    loaded = prlhf.load(trained, device="cpu")

    def write(user: str = "generic", prompt: str = PROMPT, **settings: Any) -> str:
        return str(loaded.generate(prompt, user, **{"temperature": 0.0, "max_new_tokens": 16} | settings))

    return write


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Any]) -> Path:
    """A run whose users act in the adapter."""
    from prlhf.train.run import train

    folder = tmp_path_factory.mktemp("runs") / "gated"
    train(make_config(folder, user_in="adapter", lora_r=4))
    return folder
