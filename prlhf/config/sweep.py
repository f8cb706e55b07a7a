"""The settings of `prlhf sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prlhf.config.keys import Needs, key, turned_on
from prlhf.config.stage import Stage

SAMPLED = Needs("trials", lambda config: config.trials is not None, "a number")
JUDGED = Needs("metric", lambda config: config.metric.startswith("judge/"), "judge/winrate")
ASHA = turned_on("asha")


class SweepConfig(Stage):
    """Many trials of `train`, or of train, generate and judge, over a space of settings."""

    space: dict[str, Any] = key(
        {},
        "key=0.1:0.9, key=1e-5:1e-3:log or key=value,value,… over a key of train, or of generate as in "
        "generate.temperature=0.5:1. Repeatable.",
        panel="Trials",
        form="KEY=VALUES",
        example="alpha=0.2,0.5",
        texts=True,
    )
    out: Path = key(Path("sweep"), "Folder to write.")
    trials: int | None = key(None, "How many points to sample.", unset="the whole grid", ge=1)
    search: Literal["grid", "random", "optuna"] | None = key(
        None, "How points are chosen.", unset="random with `trials`, else grid"
    )
    seed: int = key(0, "Seed of the sampled points; that of the trials is train.seed.", used=[SAMPLED])
    concurrent: int | None = key(None, "Trials at a time.", unset="as many as the cluster has room for", ge=1)

    metric: str = key(
        "eval/accuracy_macro",
        "What to rank trials by; judge/winrate and others of judge/ by generating and judging at the end of a trial.",
        panel="Ranking",
    )
    mode: Literal["max", "min"] = key("max", "Whether more or less is better.")
    against: str = key(
        "base",
        "The responses to win against: a file of `prlhf generate`, or base for the base model's own.",
        used=[JUDGED],
        idle=["base"],
    )

    asha: bool = key(
        False, "Stop trials that are behind at an evaluation (see train.eval_every).", panel="Early stopping"
    )
    grace: int | None = key(None, "Steps before the first look at a trial.", unset="eval_every", used=[ASHA], ge=1)
    reduction: float = key(3, "The best 1 in this many trials go on, with as many times more steps.", used=[ASHA], gt=1)
