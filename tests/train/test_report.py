"""What a run tells whoever follows it while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf.train.run import train


@pytest.mark.parametrize(("objective", "name"), [("dpo", "eval/accuracy_macro"), ("sft", "eval/nats_per_token")])
def test_evaluations_are_reported_as_they_come(
    make_config: Callable[..., Any], tmp_path: Path, objective: str, name: str
) -> None:
    told: list[dict[str, float]] = []
    results = train(make_config(tmp_path / "run", objective=objective, eval_every=3), report=told.append)
    assert [row["step"] for row in told] == [3, 6]
    assert told[-1][name] == pytest.approx(results["eval"][name.removeprefix("eval/")])
    assert all(isinstance(value, int | float) for row in told for value in row.values())
