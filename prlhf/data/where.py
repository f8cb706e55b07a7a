"""Where custom data come from: a file, a folder or the hub, and which of its splits are trained on and held out."""

from __future__ import annotations

from collections.abc import Mapping

from prlhf.config import PrepConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.source.files import file_rows, local_path
from prlhf.source.folders import EVAL_NAMES, TRAIN, open_folder
from prlhf.source.hub import hub_splits
from prlhf.source.raw import RawRows


def open_source(config: PrepConfig) -> tuple[str, dict[str, RawRows]]:
    """(what the manifest calls the source, {`train`, `eval`} where the data come split, else {`all`})."""
    source = config.source or config.dataset
    path = local_path(source)
    if config.source and not path.exists():
        raise PrlhfError(f"--source {source} does not exist", "give a file, or a folder of files")
    if path.is_dir():
        _refuse(config, "a folder", "revision")
        return str(path), choose(str(path), open_folder(path, config.config), config.split)
    if path.exists():
        _refuse(config, "a file", "split", "config", "revision")
        return str(path), {"all": file_rows([path])}
    instead = f"run: prlhf prep PATH (local .jsonl, .csv, .parquet, …; there is no local {source})"
    return source, choose(source, hub_splits(source, instead, config.config, config.revision), config.split)


def choose(source: str, splits: Mapping[str, RawRows], asked: str | None) -> dict[str, RawRows]:
    """{`train`, `eval`} or {`all`}. `asked`: the split to train on, and after a comma the one to hold out."""
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        for name in names:
            if name not in splits:
                raise PrlhfError(
                    f"{source} has no split '{name}'", f"it has {', '.join(splits)}; {nearest(name, splits)}"
                )
        if len(names) > 2 or len(set(names)) < len(names):
            raise PrlhfError(f"--split {asked} names {len(names)} splits", "name one, or TRAIN,EVAL")
        return {"all": splits[names[0]]} if len(names) == 1 else {"train": splits[names[0]], "eval": splits[names[1]]}
    if len(splits) == 1:
        return {"all": next(iter(splits.values()))}
    if TRAIN not in splits:
        listed = ", ".join(splits)
        raise PrlhfError(
            f"{source} has the splits {listed} and no '{TRAIN}'", "choose with --split TRAIN or TRAIN,EVAL"
        )
    held_out = next((name for name in EVAL_NAMES if name in splits), None)
    return {"all": splits[TRAIN]} if held_out is None else {"train": splits[TRAIN], "eval": splits[held_out]}


def _refuse(config: PrepConfig, what: str, *keys: str) -> None:
    for key in keys:
        if getattr(config, key) is not None:
            raise PrlhfError(
                f"--{key} {getattr(config, key)}: {config.source or config.dataset} is {what}", f"leave --{key} out"
            )
