"""`prlhf train` as a function: finds the data, then trains here, on Ray workers, or one adapter per user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from prlhf.config import SAVED, ClusterConfig, TrainConfig
from prlhf.config.keys import unused
from prlhf.config.train import WITHOUT_USERS
from prlhf.data import locate
from prlhf.errors import PrlhfError
from prlhf.folders import claim
from prlhf.model.per_user import folder_for, is_per_user, user_runs
from prlhf.progress import SILENT, Progress
from prlhf.recipes import Sections, cluster_of, resolve
from prlhf.runs.report import write_run_report
from prlhf.train.run import train
from prlhf.train.run_folder import saved_config
from prlhf.train.storage import fetch_recipe, saved_cluster

HERE = ClusterConfig()
NOTHING: Mapping[str, Any] = MappingProxyType({})
NAMING = ("out", "dataset", "objective", "user_model")  # the settings that name a run's folder


def run_training(
    recipe: Sections = NOTHING,
    typed: Mapping[str, Any] = NOTHING,
    cluster: Mapping[str, Any] = NOTHING,
    resume: bool = False,
    per_user: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a new run, or continue one; returns the summary that stands in results.json.

    Args:
        recipe: the sections of a recipe; `prep` is used for a data set that is prepared on first use.
        typed: keys of TrainConfig, over those of the recipe.
        cluster: keys of ClusterConfig, over those of the recipe.
        resume: continue the run in the folder that the settings name, with the settings that it saved.
        per_user: train one adapter per user.
        progress: receives the steps and the warnings.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; a checkpoint was saved first.
    """
    layers = [recipe.get("train", {}), typed]
    if per_user:
        _refuse_users(typed)
    if not resume:
        return start(resolve(TrainConfig, *layers), cluster_of(recipe, cluster), per_user, recipe, progress)
    cluster_of(recipe, {"workers": 1} | dict(cluster))  # before a recipe is fetched from the storage
    config = resolve(TrainConfig, *({key: layer[key] for key in NAMING if key in layer} for layer in layers))
    folder = folder_for(config.dataset) if per_user and config.out is None else config.folder
    return go_on(folder, typed, cluster, per_user, recipe, progress)


def plan_training(
    recipe: Sections = NOTHING,
    typed: Mapping[str, Any] = NOTHING,
    cluster: Mapping[str, Any] = NOTHING,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Check everything and return the plan of the run that `run_training` would start. Trains and writes nothing.

    Data that training would prepare first are prepared in a temporary folder. Raises PrlhfError.
    """
    from prlhf.train.dry_run import plan

    config, at = resolve(TrainConfig, recipe.get("train", {}), typed), cluster_of(recipe, cluster)
    with TemporaryDirectory(prefix="prlhf-") as scratch:
        folder = locate(config.dataset, recipe, progress, Path(scratch), "--dataset ")
        found = plan(
            config.model_copy(update={"out": config.folder, "dataset": str(folder)}),
            progress,
            at if at.workers else HERE,
        )
    if not folder.exists():
        found["settings"]["dataset"] = config.dataset
        found["missing"].append(f"the data set {config.dataset} is not prepared yet: training will do that first")
    return found


def start(
    config: TrainConfig,
    cluster: ClusterConfig = HERE,
    per_user: bool = False,
    recipe: Sections = NOTHING,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a new run. A data set that is a known name is prepared on first use. Raises as `run_training`."""
    folder = folder_for(config.dataset) if per_user and config.out is None else config.folder
    claim(folder, "run", resume=False)
    where = str(locate(config.dataset, recipe, progress, option="--dataset "))
    return _train(config.model_copy(update={"out": folder, "dataset": where}), cluster, False, per_user, progress)


def go_on(
    folder: Path,
    typed: Mapping[str, Any] = NOTHING,
    cluster: Mapping[str, Any] = NOTHING,
    per_user: bool = False,
    recipe: Sections = NOTHING,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Continue the run in `folder`, with the settings and the cluster that it saved.

    `typed`: settings over those of `recipe`, and these over the saved ones, from which they may differ where run.py
    allows it. `cluster`: values in place of the saved ones and of those in the section `cluster` of `recipe`. Raises
    as `run_training`.
    """
    shared = recipe.get("cluster", {})
    fetch_recipe(folder, resolve(ClusterConfig, shared, {"workers": 1}, cluster))
    again = {key: value for key, value in recipe.get("train", {}).items() if value is not None}
    config = resolve(TrainConfig, saved_config(folder).model_dump() | again, typed, {"out": folder})
    return _train(
        config, cluster_of({"cluster": {**shared, **saved_cluster(folder)}}, cluster), True, per_user, progress
    )


def _refuse_users(typed: Mapping[str, Any]) -> None:
    """With --per-user nothing that is typed may be about a user model: the adapter of one user has none."""
    config = TrainConfig.model_validate({**typed, **WITHOUT_USERS}, context=SAVED)
    needless = unused(TrainConfig.declared, config, typed)
    for key, value in typed.items():
        if key in needless or value != WITHOUT_USERS.get(key, value):
            raise PrlhfError(f"{key} = {value} is not used with --per-user", f"leave {key} out")


def _train(
    config: TrainConfig, cluster: ClusterConfig, resume: bool, per_user: bool, progress: Progress
) -> dict[str, Any]:
    """Train, and write the page of the run; a page that cannot be written is a warning, since the run is finished."""
    results = _trained(config, cluster, resume, per_user, progress)
    try:
        for folder in [*user_runs(config.folder), config.folder]:
            write_run_report(folder)
    except PrlhfError as error:
        progress.note(f"warning: the run is finished, but not its page: {error}")
    return results


def _trained(
    config: TrainConfig, cluster: ClusterConfig, resume: bool, per_user: bool, progress: Progress
) -> dict[str, Any]:
    if per_user or is_per_user(config.folder):
        if cluster.workers:
            raise PrlhfError("--per-user trains in this process, one adapter after another", "leave out --workers")
        from prlhf.train.per_user import train_per_user

        return train_per_user(config, resume, progress)
    if cluster.workers:
        from prlhf.train.on_ray import train_on_ray  # brings Ray

        return train_on_ray(config, cluster, resume, progress)
    return train(config, resume, progress)
