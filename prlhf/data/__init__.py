"""`prlhf prep`: turns raw data into a prepared data set. Each known data set has a file; `custom.py` reads the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data import custom
from prlhf.data.data_sets import Load, data_set
from prlhf.data.provenance import choices, refuse_other_options, refuse_to_replace
from prlhf.data.rows import LoadedData
from prlhf.data.splits import index_users, indexed
from prlhf.dataset import Prepared, User, is_prepared, write_prepared
from prlhf.errors import PrlhfError, nearest
from prlhf.extensions import DATA_SETS
from prlhf.files import at_home
from prlhf.folders import claim
from prlhf.progress import SILENT, Progress
from prlhf.recipes import resolve
from prlhf.source.formats import form, local_path
from prlhf.source.streams import PACKED

__all__ = ["data_set", "locate", "prepare"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def prepare(config: PrepConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Prepare `config.dataset` in `config.folder`. Nothing is written if there is an error.

    Returns:
        The manifest.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, no comparison is left, or the folder may not be written.
    """
    load = find_loader(config.dataset)
    check_place(config)
    loaded = load(config, progress)
    train, held_out, users = index_users(loaded.train, loaded.eval, loaded.order, loaded.preferences)
    if not train:
        raise PrlhfError(f"no comparison to train on is left in {loaded.source}", "check the file and the filters")
    warnings = [*loaded.warnings, *_warnings(loaded)]
    manifest = _manifest(config, loaded, users) | loaded.notes | {"warnings": warnings}
    data = Prepared(train, held_out, users, manifest, loaded.prompts, loaded.judging, indexed(loaded.choices, {}))
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
    """Return the folder of a prepared data set.

    Args:
        dataset: the folder, or a known name, which stands for data/NAME and is prepared on first use.
        recipe: its section `prep` holds the settings for that.
        progress: receives the steps and the warnings.
        scratch: prepare in this folder instead, so that nothing is left behind.
        option: the text before the name of a data set on the command line, for hints.

    Raises:
        PrlhfError: there is no such data set, or data/NAME was prepared with other settings.
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
    """Return the settings for `dataset` from a recipe's section `prep` and the options of the command.

    If the section is for another data set, keys that do not apply to `dataset` are ignored; otherwise they are refused.

    Raises:
        PrlhfError: a key or a value is refused.
    """
    if section.get("dataset", dataset) == dataset:
        return resolve(PrepConfig, {**section, "dataset": dataset}, typed)
    return resolve(PrepConfig, section, {**typed, "dataset": dataset})


def find_loader(dataset: str) -> Load:
    """Return the function that reads `dataset`: a known name, or a path or hub id of custom data.

    Raises:
        PrlhfError: `dataset` is none of them.
    """
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
    choices = {"choices": len(loaded.choices)} if loaded.choices else {}
    return {
        "dataset": config.dataset,
        "source": loaded.source,
        "seed": config.seed,
        "options": loaded.options,
        **loaded.counts,
        "kept": {"train": len(loaded.train), "eval": len(loaded.eval), **choices},
        "users": {"seen": seen, "unseen": len(users) - seen},
    }


def _warnings(loaded: LoadedData) -> list[str]:
    lines = []
    if len(loaded.order) == 1:
        lines.append("one user: personalization adds nothing to plain DPO")
    if not loaded.eval:
        lines.append("no held-out comparisons: a model cannot be judged on them")
    return lines


def check_place(config: PrepConfig) -> None:
    """Check that the folder may be written, before any data are read.

    Raises:
        PrlhfError: it may not be written, or holds the data of another source or of other settings.
    """
    source = source_of(config)
    claim(config.folder, "dataset", inputs=[local_path(source)] if source else [])
    if source and config.dataset not in DATA_SETS and local_path(source).resolve() in config.folder.resolve().parents:
        raise PrlhfError(
            f"{config.folder} lies in {source}: the next `prlhf prep` would read both",
            "choose another --out",
        )
    refuse_to_replace(config)


def source_of(config: PrepConfig) -> str | None:
    """Return the local file or folder that is read; None for a data set of the hub or a synthetic one."""
    source = config.source or (None if config.dataset in DATA_SETS else config.dataset)
    return source if source and local_path(source).exists() else None
