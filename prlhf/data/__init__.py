"""`prlhf prep`: raw data to a prepared data set. One adapter a file; `ADAPTERS` names them.

An adapter takes (config, progress) and returns `rows.Loaded`. To add a data set, write its file and register it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig, resolve
from prlhf.data import custom, demo, demo_crowd, demo_profiles, prism, psoups, tldr
from prlhf.data.rows import Loaded
from prlhf.data.splits import index_users
from prlhf.errors import PrlhfError, nearest
from prlhf.progress import SILENT, Progress
from prlhf.records import Prepared, User, is_prepared, write_prepared
from prlhf.source.files import form, local_path
from prlhf.source.streams import PACKED

Adapter = Callable[[PrepConfig, Progress], Loaded]

CUSTOM = "custom data"
ADAPTERS: dict[str, Adapter] = {
    "demo": demo.load,
    "demo-profiles": demo_profiles.load,
    "demo-crowd": demo_crowd.load,
    "tldr": tldr.load,
    "prism": prism.load,
    "psoups": psoups.load,
}

# The keys of `PrepConfig` that each data set reads, besides those of every data set.
READS: dict[str, frozenset[str]] = {
    "demo": demo.READS,
    "demo-profiles": demo_profiles.READS,
    "demo-crowd": demo_crowd.READS,
    "tldr": tldr.READS,
    "prism": prism.READS,
    "psoups": psoups.READS,
    CUSTOM: custom.READS,
}
_EVERYWHERE = frozenset({"dataset", "out", "seed", "source"})

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def prepare(config: PrepConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Prepare `config.dataset` into `config.folder` and return the manifest. Nothing is written on any error."""
    adapter = find_adapter(config.dataset)
    check_options(config)
    _check_not_its_own_source(config)
    loaded = adapter(config, progress)
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
) -> Path:
    """The prepared folder that `dataset` names.

    A folder is taken as it is; a known name means data/NAME, prepared there on first use with the recipe's `prep`
    section, or below `scratch` where nothing is to be left behind.
    """
    if is_prepared(Path(dataset)):
        return Path(dataset)
    if dataset not in ADAPTERS:
        raise PrlhfError(
            f"{dataset} is no prepared data set", f"{nearest(dataset, ADAPTERS)} (or a folder of `prlhf prep`)"
        )
    config = resolve(PrepConfig, (recipe or {}).get("prep", {}), {"dataset": dataset})
    if not is_prepared(config.folder):
        if scratch is not None:
            config = config.model_copy(update={"out": scratch / dataset})
        progress.note(f"preparing {dataset} in {config.folder}")
        prepare(config, progress)
    return config.folder


def check_options(config: PrepConfig) -> None:
    """Refuse keys that were given and that the data set at hand does not read."""
    name = config.dataset if config.dataset in READS else CUSTOM
    for key in sorted(config.model_fields_set - READS[name] - _EVERYWHERE):
        others = [f"'{other}'" if other != CUSTOM else other for other, keys in READS.items() if key in keys]
        who = name if name == CUSTOM else f"the data set '{name}'"
        raise PrlhfError(
            f"{key} = {getattr(config, key)} is not an option of {who}",
            f"leave it out{f': it belongs to {_listed(others)}' if others else ''}",
        )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def find_adapter(dataset: str) -> Adapter:
    """A known name's adapter, or the one for custom data where `dataset` is a path or a hub id."""
    if dataset in ADAPTERS:
        return ADAPTERS[dataset]
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
    raise PrlhfError(f"unknown data set '{dataset}'", f"{nearest(dataset, ADAPTERS)} (or a path, or a hub id ORG/NAME)")


def _manifest(config: PrepConfig, loaded: Loaded, users: list[User]) -> dict[str, Any]:
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


def _warnings(loaded: Loaded) -> list[str]:
    lines = []
    if len(loaded.order) == 1:
        lines.append("one user: personalization cannot be told from plain DPO")
    if not loaded.eval:
        lines.append("no held-out comparisons: there is nothing to judge a model on")
    return lines


def _check_not_its_own_source(config: PrepConfig) -> None:
    """Writing replaces the folder whole: it must not hold what is being read."""
    if config.dataset in ADAPTERS and config.source is None:
        return
    source, out = local_path(config.source or config.dataset).resolve(), config.folder.resolve()
    if source.exists() and (source == out or out in source.parents):
        raise PrlhfError(f"{config.folder} holds the source itself and would be replaced", "choose another --out")
