"""The settings of one trial, and of all trials of a space, checked before the first of them starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig, JudgeConfig, Stage, SweepConfig, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import Sections, resolve
from prlhf.sweep.space import Point, Space, corners

JUDGED = "judge/"  # metrics with this prefix come from generating and judging at the end of a trial
MANY_CORNERS = 20_000


class Settings(Stage):
    """The stages of a trial; `generate` and `judge` are None unless the metric comes from them."""

    train: TrainConfig
    generate: GenerateConfig | None = None
    judge: JudgeConfig | None = None
    against: str = "base"


def identity(settings: Settings) -> dict[str, Any]:
    """All settings except output folders, as JSON values: keys of train, and `STAGE.key` of the others."""
    values = settings.train.model_dump(mode="json", exclude={"out"})
    if settings.generate and settings.judge:
        written = settings.generate.model_dump(mode="json", exclude={"out"})
        judged = {"judge": settings.judge.judge, "seed": settings.judge.seed, "against": settings.against}
        values |= {f"generate.{key}": value for key, value in written.items()}
        values |= {f"judge.{key}": value for key, value in judged.items()}
    return values


def settings_at(point: Point, sections: Sections, sweep: SweepConfig) -> Settings:
    """The sections of the recipe, and the values of the point over them. Raises PrlhfError for a refused value."""
    train = resolve(TrainConfig, sections.get("train", {}), {k: v for k, v in point.items() if "." not in k})
    if not sweep.metric.startswith(JUDGED):
        return Settings(train=train)
    written = {k.removeprefix("generate."): v for k, v in point.items() if "." in k}
    generate = resolve(GenerateConfig, sections.get("generate", {}), written)
    judge = resolve(JudgeConfig, sections.get("judge", {}))
    return Settings(train=train, generate=generate, judge=judge, against=sweep.against)


def all_settings(points: list[Point], sections: Sections, sweep: SweepConfig) -> list[Settings]:
    """The settings at `points`. Raises PrlhfError if two of them are the same."""
    found: dict[str, Point] = {}
    checked = [settings_at(point, sections, sweep) for point in points]
    for point, settings in zip(points, checked, strict=True):
        first = found.setdefault(settings.model_dump_json(), point)
        if first is not point:  # written differently, but the same settings
            raise PrlhfError(f"{point} and {first} are the same trial", "remove one of the values")
    return checked


def check_space(space: Space, sections: Sections, sweep: SweepConfig) -> None:
    """Refuse now what would fail when its trial starts: every corner of the space is checked.

    The bounds of settings are intervals, so a point between two accepted corners is accepted.
    """
    judged = sweep.metric.startswith(JUDGED)
    for key in space:
        if key.startswith("generate.") and not judged:
            raise PrlhfError(
                f"{key} changes nothing about {sweep.metric}", f"leave it out, or rank by --metric {JUDGED}winrate"
            )
    checked = [settings_at(point, sections, sweep) for point in _tried(space)]
    _check_metric(checked, sweep)
    _check_early_stopping(checked, sweep)


def _tried(space: Space) -> list[Point]:
    """The corners, or if there are too many, each value together with the first value of all other keys."""
    if math.prod(len(corners({key: axis})) for key, axis in space.items()) <= MANY_CORNERS:
        return corners(space)
    first = {key: corners({key: axis})[0][key] for key, axis in space.items()}
    return [first | value for key, axis in space.items() for value in corners({key: axis})]


def _check_metric(checked: list[Settings], sweep: SweepConfig) -> None:
    judged = sweep.metric.startswith(JUDGED)
    if judged and any(settings.train.objective == "rm" for settings in checked):
        raise PrlhfError(
            f"{sweep.metric} needs responses, and objective = rm does not write", "rank by eval/accuracy_macro"
        )
    if sweep.against != "base" and not Path(sweep.against).is_file():
        raise PrlhfError(f"no responses at {sweep.against}", "give a file of `prlhf generate`, or base")
    if any(settings.judge and settings.judge.judge is None for settings in checked):
        raise PrlhfError(f"{sweep.metric} needs a judge", "add --judge NAME, such as rule:longer or oracle:DATASET")


def _check_early_stopping(checked: list[Settings], sweep: SweepConfig) -> None:
    if not sweep.asha:
        return
    if sweep.metric.startswith(JUDGED):
        raise PrlhfError(
            f"--asha cannot stop trials by {sweep.metric}: it is known only at their end", "rank by an eval/ metric"
        )
    if any(settings.train.eval_every == 0 for settings in checked):
        raise PrlhfError(
            "--asha looks at trials as they are evaluated, and eval_every is 0",
            "add --set eval_every=N, a few times less than the steps of a trial",
        )
