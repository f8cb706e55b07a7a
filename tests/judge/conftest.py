"""Pairs, users and a configuration for tests of the LLM judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from judge_rows import MakeConfig, row, write

from prlhf.config import JudgeConfig


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    """A configuration for a server; the cache is in the test's own folder, and no key is in the environment."""
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def make(url: str, **values: Any) -> JudgeConfig:
        known = {"judge": "llm", "judge_model": "m", "base_url": url, "protocol": "plain", "out": tmp_path / "judged"}
        return JudgeConfig.model_validate(known | {"bootstrap": 50, "backoff": 0.01, "timeout": 5} | values)

    return make


@pytest.fixture
def profiled(prepared: Path, tmp_path: Path) -> Path:
    """Prepared data with one user, P1A, who wants something."""
    from dataclasses import replace

    from prlhf.dataset import read_prepared, write_prepared

    data = read_prepared(prepared)
    users = [replace(data.users[0], id="P1A", preference="Be brief.")]
    write_prepared(tmp_path / "profiled", replace(data, train=[], eval=[], users=users))
    return tmp_path / "profiled"


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    """A writes longer than B for anna, shorter for ben, and the same for zoe."""
    lengths = {"anna": ("one two three", "one"), "ben": ("one", "one two three"), "zoe": ("two words", "two words")}
    a = [row(f"p{i}", user, f"{texts[0]} a{i}") for user, texts in lengths.items() for i in range(2)]
    b = [row(f"p{i}", user, f"{texts[1]} b{i}") for user, texts in lengths.items() for i in range(2)]
    return write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b)
