"""`prlhf train` as a function: finds the data, then trains here, on Ray workers, or one adapter per user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prlhf.applies import check_cluster
from prlhf.config import ClusterConfig, TrainConfig, resolve
from prlhf.data import locate
from prlhf.errors import PrlhfError
from prlhf.folders import claim
from prlhf.model.per_user import folder_for, is_per_user
from prlhf.progress import SILENT, Progress
from prlhf.train.run import train
from prlhf.train.run_folder import saved_config
from prlhf.train.storage import fetch_recipe, saved_cluster

HERE = ClusterConfig()


def start(
    config: TrainConfig,
    cluster: ClusterConfig = HERE,
    per_user: bool = False,
    recipe: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train a new run; returns the summary that stands in results.json.

    A data set that is a known name is prepared on first use, with the section `prep` of `recipe`. Raises PrlhfError
    for input that the user can fix and Interrupted after a saved Ctrl-C.
    """
    folder = folder_for(config.dataset) if per_user and config.out is None else config.folder
    claim(folder, "run", resume=False)
    where = str(locate(config.dataset, recipe, progress, option="--dataset "))
    return _train(config.model_copy(update={"out": folder, "dataset": where}), cluster, False, per_user, progress)


def go_on(
    folder: Path,
    settings: Sequence[Mapping[str, Any]] = (),
    cluster: Mapping[str, Any] = MappingProxyType({}),
    per_user: bool = False,
    recipe: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Go on with the run in `folder`, with the settings and the cluster that it saved.

    `settings`: layers of values, later ones winning, that may differ from the saved ones where run.py allows it.
    `cluster`: values in place of the saved ones and of those in the section `cluster` of `recipe`. Raises as `start`.
    """
    given, shared = dict(cluster), (recipe or {}).get("cluster", {})
    fetch_recipe(folder, resolve(ClusterConfig, shared, {"workers": 1}, given))
    where = resolve(ClusterConfig, shared, saved_cluster(folder), given)
    check_cluster(where, {key: value for key, value in given.items() if value is not None})
    config = resolve(TrainConfig, saved_config(folder).model_dump(), *settings, {"out": folder})
    return _train(config, where, True, per_user, progress)


def _train(
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
