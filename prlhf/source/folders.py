"""Folders of data files, and the splits and configurations that their names tell.

`train.jsonl`, `train-00000-of-00002.parquet`, `data/train_prefs-….parquet`, `train/0000.parquet` (the hub's converted
parquet), `CONFIG/train/0000.parquet`, and folders of `save_to_disk`, of a data set or of a dictionary of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prlhf.errors import PrlhfError, nearest
from prlhf.source.files import FORMATS, file_rows, form
from prlhf.source.formats import RawRows

# What stands beside the data and is none
ASIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json", "config.json")
TRAIN = "train"
EVAL_NAMES = ("eval", "validation", "valid", "val", "dev", "test")  # the first that is there is held out
KNOWN = (TRAIN, *EVAL_NAMES)

_SHARD = re.compile(r"[-._](\d{3,}(-of-\d+)?(-[0-9a-f]{8,})?|part[-_.]?\d+)$")
_NUMBERED = re.compile(r"(data|part|shard|file)?[-._]?\d*", re.IGNORECASE)  # names that say nothing


def data_files(folder: Path) -> list[Path]:
    """Every data file in a folder and the folders in it, by path; hidden files and what describes the data left out."""
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir() and not path.is_symlink():
            found += data_files(path)
        elif path.is_file() and form(path) and path.name not in ASIDE:
            found.append(path)
    return _of_saved(folder, found)


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of one split; [] where there are none."""
    return _one_format(folder, split, splits_of(folder, data_files(folder)).get(split, []))


def folder_rows(source: str, names: Mapping[str, str]) -> dict[str, RawRows]:
    """The rows of each part, read from the files in the folder `source` that `names` gives for it."""
    folder, wanted = Path(source), " and ".join(f"{name}.jsonl" for name in names.values())
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise PrlhfError(f"--source {source} {why}", f"give the folder that holds {wanted}")
    files = {part: split_files(folder, name) for part, name in names.items()}
    for part, name in names.items():
        if not files[part]:
            raise PrlhfError(f"{source} has no {name}.jsonl", f"put {name}.jsonl or {name}*.parquet into it")
    return {part: file_rows(found) for part, found in files.items()}


def open_folder(folder: Path, config: str | None) -> dict[str, RawRows]:
    """The rows of each split, by the name that the files have for it.

    Files whose names tell no split are one, named "". `config`: a folder within, where data sets of several
    configurations stand side by side. Raises PrlhfError where there is no data, or a choice is left open.
    """
    folder = _configured(folder, config)
    files = data_files(folder)
    if not files:
        raise PrlhfError(f"{folder} holds no data file", f"put data into it: {FORMATS}")
    splits = splits_of(folder, files)
    if not any(_is_known(name) for name in splits):
        splits = {"": files}
    return {name: file_rows(_one_format(folder, name, found)) for name, found in splits.items()}


def splits_of(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Files by split: the file's own name without its shard's number, or its folder's where that says nothing."""
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    return found


def _split_of(path: Path) -> str:
    own = _SHARD.sub("", path.name[: path.name.lower().rindex(form(path))])
    parents = [part for part in reversed(path.parts[:-1]) if _is_known(part)]
    if _is_known(own) or not parents:
        return own
    return parents[0]


def _is_known(name: str) -> bool:
    """Whether a name is that of a split: `train`, and also `train_prefs`, `test_sft`."""
    return re.split(r"[-._ ]", name.lower())[0] in KNOWN


def _configured(folder: Path, config: str | None) -> Path:
    inside = _configurations(folder)
    if config is not None:
        if config in inside or (folder / config).is_dir():
            return folder / config
        known = nearest(config, inside) if inside else "leave --config out"
        raise PrlhfError(f"{folder} has no configuration '{config}'", known)
    if len(inside) > 1:
        names = ", ".join(inside)
        raise PrlhfError(f"{folder} has the configurations {names}", f"choose one: --config {inside[0]}")
    return folder


def _configurations(folder: Path) -> list[str]:
    """Folders that each hold a split of the same name, as in `CONFIG/train/0000.parquet`."""
    found: list[str] = []
    for inner in _folders(folder):
        splits = {_split_of(path.relative_to(folder / inner)) for path in data_files(folder / inner)}
        if not _is_known(inner) and any(_is_known(split) for split in splits):
            found.append(inner)
    return found


def _folders(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith((".", "__")):
            yield path.name


def _of_saved(folder: Path, files: list[Path]) -> list[Path]:
    """Of a folder of `save_to_disk` the files that it names; others are what `datasets` cached beside them."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = {str(file["filename"]) for file in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return files
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise PrlhfError(f"{folder} is not complete: {missing[0]} is not there", "save the data set again")
    return [path for path in files if path.name in names]


def _one_format(folder: Path, split: str, files: list[Path]) -> list[Path]:
    if len({form(path) for path in files}) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        what = f"'{split}'" if split else "data"
        raise PrlhfError(f"{folder} holds {what} in several formats: {names}", "keep one of them, or name a file")
    return files
