"""`prlhf sweep`: check the space, prepare what all trials share, run the trials, and write the results."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from prlhf.cluster import capacity, check_fits, connected, shown_by, worker_resources
from prlhf.config import ClusterConfig, PrepConfig, SweepConfig
from prlhf.data import locate
from prlhf.dataset import is_prepared
from prlhf.errors import Interrupted, PrlhfError
from prlhf.extensions import DATA_SETS, JUDGES
from prlhf.files import atomic_file
from prlhf.folders import claim, mark
from prlhf.progress import SILENT, Progress
from prlhf.recipes import Sections, resolve
from prlhf.sweep.results import add_shared_work, conclude
from prlhf.sweep.search import Search, search_for, search_kind
from prlhf.sweep.settings import JUDGED, check_space, settings_at
from prlhf.sweep.space import Space, space_of
from prlhf.sweep.trials import (
    NO_DISPLAY,
    RECIPE,
    Trial,
    TrialDisplay,
    missing_metric,
    read_trials,
    relocate,
    write_trials,
)

PATHS = {"train": ("model",), "generate": ("model", "reward")}  # settings that may be paths


def sweep(
    config: SweepConfig,
    sections: Sections,
    cluster: ClusterConfig | None = None,
    resume: bool = False,
    progress: Progress = SILENT,
    display: TrialDisplay = NO_DISPLAY,
    command: str = "",
) -> dict[str, Any]:
    """Run the trials of a sweep into `config.out`; returns the best trial and all others.

    A trial that fails is recorded, and the others continue.

    Args:
        config: the space and the search.
        sections: the other sections of a recipe, by stage.
        cluster: where the trials run.
        resume: continue a sweep: failed and interrupted trials run again, finished ones do not.
        progress: receives the steps and the warnings before the trials.
        display: receives the trials while they run.
        command: the command line, for the report.

    Raises:
        PrlhfError: a setting or the space is refused (before Ray starts), or no trial has the metric.
        Interrupted: Ctrl-C; finished trials are in the log.
    """
    claim(config.out, "sweep", resume)
    cluster, out = cluster or ClusterConfig(), config.out.resolve()
    space = space_of(config.space)
    check_space(space, sections, config)
    search_kind(space, config)
    known = read_trials(out)
    sections, space, prepared = _with_data(_absolute(sections), space, progress, out if resume else None)
    relocate(known, out, _folders(sections, space))
    if config.against != "base":
        config = config.model_copy(update={"against": str(Path(config.against).resolve())})
    search = search_for(space, sections, config, known, config.concurrent != 1)
    for trial in search.trials:
        if error := missing_metric(trial, config.metric):
            raise error
    mark(out, "sweep")
    _write_recipe(out, config, sections, cluster, command)
    others = [trial for trial in known if trial not in search.trials]
    skipped = sum(trial.finished for trial in search.trials)
    if skipped < search.total:
        add_shared_work(out, {"data_sets_prepared": prepared})
        _run(search, others, out, cluster, progress, display)
    return conclude(search, out, command) | {"skipped": skipped}


def _run(
    search: Search, others: list[Trial], out: Path, cluster: ClusterConfig, progress: Progress, display: TrialDisplay
) -> None:
    """Compute what trials share, then run the trials, in a cluster that is joined or started for it."""
    save = partial(_save, out, others, search)
    save()
    with connected(cluster):
        from prlhf.sweep import on_ray  # imports Ray

        each, per_trial = worker_resources(cluster), max(1, cluster.workers)
        what = "concurrent trials" if per_trial == 1 else f"concurrent trials x {per_trial} workers"
        check_fits((search.sweep.concurrent or 1) * per_trial, each, what)
        concurrent = search.sweep.concurrent or max(1, min(search.total, capacity(each) // per_trial))
        with shown_by(progress) as relay:
            judged = search.sweep.metric.startswith(JUDGED) and search.sweep.against == "base"
            against = settings_at({}, search.sections, search.sweep) if judged else None
            trials = (
                search.upcoming() if cluster.parallel == "ddp" else []
            )  # a sharded base does not fit into one worker
            counts = on_ray.precompute_in_cluster(trials, against, out, cluster, relay)
        add_shared_work(out, counts)
        display.begin(search.sweep, search.trials, search.total)
        try:
            whole = on_ray.run_trials(search, out, cluster, concurrent, save, display)
        finally:
            display.end()
    if not whole:
        done = sum(trial.finished for trial in search.trials)
        raise Interrupted(
            f"stopped with {done} of {search.total} trials done; continue with: "
            f"prlhf sweep --resume --out {search.sweep.out}"
        )


def _save(out: Path, others: list[Trial], search: Search) -> None:
    write_trials(out, [*others, *search.trials])


def _folders(sections: Sections, space: Space) -> list[str]:
    """The folders of the prepared data sets that trials train on."""
    return [str(folder) for folder in space["dataset"]] if "dataset" in space else [sections["train"]["dataset"]]  # type: ignore[union-attr]


def _with_data(
    sections: Sections, space: Space, progress: Progress, resumed: Path | None
) -> tuple[Sections, Space, int]:
    """Prepare each data set, and put its folder in the place of its name; also returns how many were prepared.

    `resumed`: the folder of a sweep that continues; its data may have moved.
    """
    new = 0

    def folder(dataset: str) -> str:
        nonlocal new
        if not is_prepared(Path(dataset)) and dataset in DATA_SETS:
            new += not is_prepared(resolve(PrepConfig, sections.get("prep", {}), {"dataset": dataset}).folder)
        option = "--space dataset=" if "dataset" in space else "--set dataset="
        if resumed and not is_prepared(Path(dataset)) and dataset not in DATA_SETS:
            raise PrlhfError(
                f"the data set of {resumed} is gone from {dataset}", f"give its new folder: {option}FOLDER"
            )
        return str(locate(dataset, sections, progress, option=option).resolve())

    if "dataset" in space:
        space = space | {"dataset": [folder(str(dataset)) for dataset in space["dataset"]]}  # type: ignore[union-attr]
        return sections, space, new
    train = dict(sections.get("train", {}))
    train["dataset"] = folder(str(train.get("dataset") or "demo"))
    return {**sections, "train": train}, space, new


def _absolute(sections: Sections) -> Sections:
    """Make paths absolute, since workers may run in another folder."""

    def whole(stage: str, key: str, value: Any) -> Any:
        here = key in PATHS.get(stage, ()) and value is not None and value != "tiny" and Path(str(value)).exists()
        return str(Path(str(value)).resolve()) if here else value

    def judge_of(value: Any) -> Any:
        kind, _, path = str(value).partition(":")
        is_path = kind in JUDGES and JUDGES[kind].argument_is_path and Path(path).exists()
        return f"{kind}:{Path(path).resolve()}" if is_path else value

    named = {stage: {k: whole(stage, k, v) for k, v in values.items()} for stage, values in sections.items()}
    if "judge" in named.get("judge", {}):
        named["judge"]["judge"] = judge_of(named["judge"]["judge"])
    return named


def _write_recipe(out: Path, config: SweepConfig, sections: Sections, cluster: ClusterConfig, command: str) -> None:
    """Write the recipe that --resume continues."""
    stages: Mapping[str, Any] = {
        **{stage: dict(values) for stage, values in sections.items() if stage in ("train", "generate", "judge")},
        "cluster": cluster.model_dump(mode="json", exclude_defaults=True),
        "sweep": config.model_dump(mode="json", exclude_defaults=True, exclude={"out"}),
    }
    given = {stage: {k: v for k, v in values.items() if v is not None} for stage, values in stages.items()}
    lines = yaml.safe_dump({stage: values for stage, values in given.items() if values}, sort_keys=False)
    header = f"# {command or f'prlhf sweep --recipe {RECIPE}'}\n# continue with: prlhf sweep --resume --out {out}\n"
    with atomic_file(out / RECIPE) as beside:
        beside.write_text(header + lines, encoding="utf-8")
