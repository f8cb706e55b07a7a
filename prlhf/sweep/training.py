"""A trial of a sweep: one training run, taken up where an earlier try of it stopped."""

from __future__ import annotations

from typing import Any

from prlhf.config import TrainConfig
from prlhf.train.run import train


def train_trial(config: TrainConfig) -> dict[str, Any]:
    """Train into `config.out`; returns the run's summary with its evaluation as `eval/NAME`."""
    results = train(config, resume=(config.folder / "recipe.yaml").exists())
    scores = results.pop("eval", {})
    return results | {f"eval/{name}": value for name, value in scores.items() if isinstance(value, float)}
