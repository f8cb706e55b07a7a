"""`prlhf runs list|show|compare` as functions: the runs in folders, one of them, and several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.folders import what_is
from prlhf.results import RunComparison, RunDetails, RunList
from prlhf.runs.read import StoredRun, natural, read_run

DEEP = 4  # how many folders below the given one a run may be: a sweep's are in trials/NAME


def runs_in(folders: Sequence[Path]) -> RunList:
    """All runs in `folders`, in the order of their names. A run that cannot be read is a line in `faults`.

    What stands in `folders` and holds no run is in `others`. Raises PrlhfError if a folder does not exist.
    """
    found, faults, others = [], [], []
    for folder in folders:
        if not folder.is_dir():
            raise PrlhfError(f"no folder at {folder}", "give a folder with runs")
        for entry in [folder] if what_is(folder) == "run" else _inside(folder):
            places = list(_places(entry, DEEP - 1))
            others += [] if places else [entry]
            for place in places:
                try:
                    found.append(read_run(place).summary())
                except PrlhfError as error:
                    faults.append(str(error))
    return RunList(folders=list(folders), runs=found, faults=faults, others=others)


def _places(folder: Path, deep: int) -> Iterator[Path]:
    """`folder` if it is a run, else the runs in it. Folders of other kinds, and hidden ones, are passed over."""
    kind = what_is(folder)
    if kind == "run":
        yield folder
    elif deep and kind in (None, "sweep", "demo"):
        for one in _inside(folder):
            yield from _places(one, deep - 1)


def _inside(folder: Path) -> list[Path]:
    """The folders in `folder` but hidden ones, in the order of their names; none if it may not be read."""
    try:
        found = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    except OSError:
        return []
    return sorted(found, key=lambda one: natural(one.name))


def details_of(folder: Path) -> RunDetails:
    """One run with its evaluations. Raises PrlhfError if it cannot be read."""
    run = read_run(folder)
    scores = run.scores
    table = {
        user: {name: scores.get(f"{name}_by_user", {}).get(user) for name in ("accuracy", "generic", "margin")}
        for user in scores.get("accuracy_by_user", {})
    }
    evaluations = [
        {"step": row["step"]} | {name: value for name, value in row["eval"].items() if isinstance(value, float)}
        for row in run.evaluations
    ]
    return RunDetails(**run.summary().summary(), settings=_settings(run), evaluations=evaluations, users=table)


def comparison_of(folders: Sequence[Path]) -> RunComparison:
    """The runs in `folders` side by side: the settings that differ, and the results.

    Raises:
        PrlhfError: there are fewer than two runs, or one cannot be read.
    """
    runs = [read_run(place) for folder in folders for place in (list(_places(folder, DEEP)) or [folder])]
    if len(runs) < 2:
        raise PrlhfError(f"{len(runs)} run to compare", "give two runs, or a folder that holds several")
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    table = {name: [one.get(name) for one in settings] for name in names}
    summaries = [run.summary() for run in runs]
    scores = dict.fromkeys(name for one in summaries for name in one.scores)
    more = {
        name: [run.results.get(name) for run in runs]
        for name in ("loss", "train_seconds")
        if any(name in run.results for run in runs)
    }
    return RunComparison(
        runs=summaries,
        settings={name: values for name, values in table.items() if any(value != values[0] for value in values)},
        results={name: [one.scores.get(name) for one in summaries] for name in scores} | more,
    )


def _settings(run: StoredRun) -> dict[str, Any]:
    """The settings that the run uses, by key."""
    config = run.config
    return {
        name: value
        for name, value in config.model_dump(mode="json", exclude={"out"}).items()
        if config.declared[name].unmet(config) is None
    }
