"""What one trial is run with, and all trials of a space, checked before the first of them starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.config import GenerateConfig, JudgeConfig, Stage, SweepConfig, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import resolve
from prlhf.sweep.space import Point, Space, corners

JUDGED = "judge/"  # metrics of this name come from generating and judging at the end of a trial
Sections = Mapping[str, Mapping[str, Any]]  # stage -> its values, as recipe and command line give them
MANY_CORNERS = 20_000


class Settings(Stage):
    """A trial's stages. `generate` and `judge` are there where the metric comes from them."""

    train: TrainConfig
    generate: GenerateConfig | None = None
    judge: JudgeConfig | None = None
    against: str = "base"


def identity(settings: Settings) -> dict[str, Any]:
    """All of it but where it is written, as JSON has it: train's keys, the others with their stage before them."""
    values = settings.train.model_dump(mode="json", exclude={"out"})
    if settings.generate and settings.judge:
        written = settings.generate.model_dump(mode="json", exclude={"out"})
        judged = {"judge": settings.judge.judge, "seed": settings.judge.seed, "against": settings.against}
        values |= {f"generate.{key}": value for key, value in written.items()}
        values |= {f"judge.{key}": value for key, value in judged.items()}
    return values


def settings_at(point: Point, sections: Sections, sweep: SweepConfig) -> Settings:
    """The recipe's sections with the point's values on top. Raises PrlhfError where a stage refuses a value."""
    train = resolve(TrainConfig, sections.get("train", {}), {k: v for k, v in point.items() if "." not in k})
    if not sweep.metric.startswith(JUDGED):
        return Settings(train=train)
    written = {k.removeprefix("generate."): v for k, v in point.items() if "." in k}
    generate = resolve(GenerateConfig, sections.get("generate", {}), written)
    judge = resolve(JudgeConfig, sections.get("judge", {}))
    return Settings(train=train, generate=generate, judge=judge, against=sweep.against)


def all_settings(points: list[Point], sections: Sections, sweep: SweepConfig) -> list[Settings]:
    """The trials at `points`; two of the same settings are refused."""
    found: dict[str, Point] = {}
    checked = [settings_at(point, sections, sweep) for point in points]
    for point, settings in zip(points, checked, strict=True):
        first = found.setdefault(settings.model_dump_json(), point)
        if first is not point:  # told apart as written, but one setting
            raise PrlhfError(f"{point} and {first} are the same trial", "remove one of the values")
    return checked


def check(space: Space, sections: Sections, sweep: SweepConfig) -> None:
    """Refuse what would fail only when its trial comes: every corner of the space is tried against the stages' limits.

    Limits are intervals, so what lies between two corners passes where they do.
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
    """The corners; where there are too many of them, every value beside the first ones of all other keys."""
    if math.prod(len(corners({key: axis})) for key, axis in space.items()) <= MANY_CORNERS:
        return corners(space)
    first = {key: corners({key: axis})[0][key] for key, axis in space.items()}
    return [first | value for key, axis in space.items() for value in corners({key: axis})]


def _check_metric(checked: list[Settings], sweep: SweepConfig) -> None:
    judged = sweep.metric.startswith(JUDGED)
    if judged and any(settings.train.objective == "rm" for settings in checked):
        raise PrlhfError(
            f"{sweep.metric} needs responses, and objective = rm writes none", "rank by eval/accuracy_macro"
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
