"""`prlhf prep`: raw data to a prepared data set. One known data set per file; `custom.py` reads everything else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig, resolve
from prlhf.data import custom
from prlhf.data.data_sets import Load, data_set
from prlhf.data.provenance import choices, refuse_other_options, refuse_to_replace
from prlhf.data.rows import LoadedData
from prlhf.data.splits import index_users
from prlhf.dataset import Prepared, User, is_prepared, write_prepared
from prlhf.errors import PrlhfError, nearest
from prlhf.extensions import DATA_SETS
from prlhf.files import at_home
from prlhf.folders import claim
from prlhf.progress import SILENT, Progress
from prlhf.source.files import form, local_path
from prlhf.source.streams import PACKED

__all__ = ["data_set", "locate", "prepare"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def prepare(config: PrepConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Prepare `config.dataset` into `config.folder` and return the manifest. Nothing is written on any error."""
    load = find_loader(config.dataset)
    check_place(config)
    loaded = load(config, progress)
    train, held_out, users = index_users(loaded.train, loaded.eval, loaded.order, loaded.preferences)
    if not train:
        raise PrlhfError(f"no comparison to train on is left of {loaded.source}", "check the file and the filters")
    warnings = [*loaded.warnings, *_warnings(loaded)]
    manifest = _manifest(config, loaded, users) | loaded.notes | {"warnings": warnings}
    data = Prepared(train, held_out, users, manifest, loaded.prompts, loaded.judging)
    written = write_prepared(config.folder, data)
    for line in warnings:
        progress.note(f"warning: {line}")
    return written


def locate(
    dataset: str,
    recipe: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    scratch: Path | None = None,
    option: str = "dataset=",
) -> Path:
    """The prepared folder that `dataset` names.

    A folder is taken as it is; a known name means data/NAME, prepared there on first use with the recipe's `prep`
    section, or below `scratch` where nothing is to be left behind. `option`: what is typed before another data set.
    Raises PrlhfError where data/NAME was made with other options.
    """
    dataset = at_home(dataset)
    if is_prepared(Path(dataset)):
        return Path(dataset)
    if dataset not in DATA_SETS:
        raise PrlhfError(
            f"{dataset} is not a prepared data set", f"{nearest(dataset, DATA_SETS)} (or a folder of `prlhf prep`)"
        )
    config = config_for(dataset, (recipe or {}).get("prep", {}), {})
    if is_prepared(config.folder):
        refuse_other_options(config.folder, config, choices(config.folder, config, option))
    else:
        if scratch is not None:
            config = config.model_copy(update={"out": scratch / dataset})
        progress.note(f"preparing {dataset} in {config.folder}")
        prepare(config, progress)
    return config.folder


def config_for(dataset: str, section: Mapping[str, Any], typed: Mapping[str, Any]) -> PrepConfig:
    """The settings for `dataset` from a recipe's section `prep` and from what was typed.

    Of a section for another data set only those keys count that `dataset` uses, too; in its own, a key that is not used
    is a mistake.
    """
    if section.get("dataset", dataset) == dataset:
        return resolve(PrepConfig, {**section, "dataset": dataset}, typed)
    return resolve(PrepConfig, section, {**typed, "dataset": dataset})


def find_loader(dataset: str) -> Load:
    """What reads a known data set, or custom data if `dataset` is a path or a hub id. Raises PrlhfError for others."""
    if dataset in DATA_SETS:
        known: Load = DATA_SETS[dataset]
        return known
    if re.match(r"\w+://", dataset):
        raise PrlhfError(f"{dataset} is an address, not a path", "download it first, or give a hub id ORG/NAME")
    path = local_path(dataset)
    if dataset and os.path.exists(path):
        return custom.load
    if form(path) or path.suffix in PACKED or len(path.parts) > 2 or dataset.startswith((".", "/", "~", "$")):
        raise PrlhfError(f"no data at {dataset}", "check the path")
    if _HUB_ID.fullmatch(dataset):
        return custom.load
    if len(path.parts) > 1:
        raise PrlhfError(f"no data at {dataset}", "check the path")
    raise PrlhfError(
        f"unknown data set '{dataset}'", f"{nearest(dataset, DATA_SETS)} (or a path, or a hub id ORG/NAME)"
    )


def _manifest(config: PrepConfig, loaded: LoadedData, users: list[User]) -> dict[str, Any]:
    seen = sum(user.seen for user in users)
    return {
        "dataset": config.dataset,
        "source": loaded.source,
        "seed": config.seed,
        "options": loaded.options,
        **loaded.counts,
        "kept": {"train": len(loaded.train), "eval": len(loaded.eval)},
        "users": {"seen": seen, "unseen": len(users) - seen},
    }


def _warnings(loaded: LoadedData) -> list[str]:
    lines = []
    if len(loaded.order) == 1:
        lines.append("one user: personalization cannot be told from plain DPO")
    if not loaded.eval:
        lines.append("no held-out comparisons: there is nothing to judge a model on")
    return lines


def check_place(config: PrepConfig) -> None:
    """Find whether the folder may be written, before any data are read."""
    source = source_of(config)
    claim(config.folder, "dataset", inputs=[local_path(source)] if source else [])
    if source and config.dataset not in DATA_SETS and local_path(source).resolve() in config.folder.resolve().parents:
        raise PrlhfError(
            f"{config.folder} lies in {source}, which would be read together with it the next time",
            "choose another --out",
        )
    refuse_to_replace(config)


def source_of(config: PrepConfig) -> str | None:
    """The local file or folder that is read; None where it is the hub's, or made up."""
    source = config.source or (None if config.dataset in DATA_SETS else config.dataset)
    return source if source and local_path(source).exists() else None
