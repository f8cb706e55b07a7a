"""The numbers of an experiment as a section of docs/RESULTS.md, from page.md.jinja; the terminal shows the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from benchmarks.real_text.criteria import criteria, percent
from benchmarks.real_text.experiments import EXPERIMENTS, Experiment
from benchmarks.real_text.gather import arm_of, label
from benchmarks.real_text.tasks import tasks_of

Numbers = dict[str, Any]
TEMPLATE = Path(__file__).with_name("page.md.jinja")
MANY = 12  # users that do not fit into the columns of a table
LONG, SHORT = 12, 6  # letters of an id that is shortened, and of what is left of it


def as_markdown(found: Numbers) -> str:
    """The section about what was found for an experiment."""
    experiment = EXPERIMENTS[found["name"]]
    users = sorted({user for each in found["ranking"].values() for user in each["users"]})
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined)
    environment.filters |= {"pct": percent, "num": number, "oneline": one_line}
    environment.filters["who"] = partial(called, experiment=experiment, found=found)
    more: Numbers = {
        "title": experiment.title,
        "about": experiment.about,
        "beside": experiment.beside,
        "users": users if len(users) <= MANY else [],
        "unseen": any("unseen" in each for each in found["ranking"].values()),
        "missing": not_measured(experiment, found),
        "label": lambda name: label(found["arms"], name),
        "seeds": lambda name: ", ".join(found["arms"][name]["seeds"]),
        "shown": {*experiment.shown, *(arm.name for arm in experiment.arms if arm.users == "generic")},
        "dimensions": experiment.dimensions,
        "won": any(found["wins"].values()),
        "criteria": {arm: criteria(found, arm, experiment.dimensions) for arm in judged_arms(experiment)},
        "commands": commands(experiment),
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**(found | more))


def judged_arms(experiment: Experiment) -> tuple[str, ...]:
    """The arms of which something is expected: only where every dimension has users of its own."""
    return experiment.shown if experiment.dimensions and experiment.expects else ()


def not_measured(experiment: Experiment, found: Numbers) -> list[str]:
    """The arms that were not run, or not with all seeds."""
    lines = []
    for arm in experiment.arms:
        there = {seed for name, each in found["arms"].items() if arm_of(name) == arm.name for seed in each["seeds"]}
        lacking = [str(seed) for seed in experiment.seeds if str(seed) not in there]
        if lacking:
            which = "" if len(lacking) == len(experiment.seeds) else f", seeds {', '.join(lacking)}"
            lines.append(f"{arm.about}{which}")
    return lines


def commands(experiment: Experiment) -> list[str]:
    """The trainings of the first seed, and one command that runs everything."""
    tasks = tasks_of(experiment, Path(), Path("raw"), "MODEL", experiment.seeds[:1])
    trained = [task.command for task in tasks if task.stage in ("prep", "train")]
    return [
        f"python -m benchmarks.real_text {experiment.name} --raw raw",
        *(" ".join(line.split()) for line in trained),
    ]


def number(found: Numbers | None, digits: int = 1) -> str:
    """`4.86 [4.71, 5.02]`: a mean with its 95 % interval; a dash for what was not measured."""
    if not found:
        return "–"
    mean, low, high = (f"{found[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def called(user: str, experiment: Experiment, found: Numbers) -> str:
    """A user as in the tables: a long id shortened; where it was drawn who likes what, those who like less of it."""
    short = user if len(user) <= LONG else user[:SHORT]
    drawn = {} if experiment.rules else found.get("rules") or {}
    measure, sign = drawn.get(user, ("", 0))
    return f"{short} (fewer {measure})" if sign < 0 else short


def one_line(text: str, length: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[:length] + " …"
