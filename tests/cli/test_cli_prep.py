"""`prlhf prep` on the command line: what an option undoes, and files that are not JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROWS = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no", "user_id": f"u{i % 2}"} for i in range(6)]


@pytest.fixture
def raw(here: Path) -> Path:
    lines = [json.dumps(row) for row in (*ROWS, {"prompt": "7?"})]
    (here / "raw.jsonl").write_text("\n".join(lines))
    (here / "skip.yaml").write_text("prep:\n  dataset: raw.jsonl\n  bad_rows: skip\n")
    (here / "noisy.yaml").write_text("prep:\n  dataset: raw.jsonl\n  noise: 0.4\n")
    return here


def test_a_flag_undoes_a_recipe(raw: Path, prlhf: Callable[..., Any]) -> None:
    skipped = prlhf("prep", "raw.jsonl", "--recipe", "skip.yaml", "--out", "a", "--json")
    assert json.loads(skipped.stdout)["dropped"]["malformed"] == 1
    strict = prlhf("prep", "raw.jsonl", "--recipe", "skip.yaml", "--strict", "--out", "b")
    assert strict.exit_code == 2
    assert "raw.jsonl:7: " in strict.stderr
    assert not (raw / "b").exists()


def test_a_recipe_for_this_data_must_fit_it(raw: Path, prlhf: Callable[..., Any]) -> None:
    result = prlhf("prep", "raw.jsonl", "--recipe", "noisy.yaml", "--skip-bad")
    assert result.exit_code == 2
    assert "noise = 0.4 is not used with dataset = raw.jsonl" in result.stderr


def test_preference_text_has_both_ways(raw: Path, prlhf: Callable[..., Any]) -> None:
    for flag in ("--preference-text", "--no-preference-text"):
        result = prlhf("prep", "demo", flag, "--out", "a")
        assert result.exit_code == 2
        assert "text = " in result.stderr
    assert not (raw / "a").exists()
