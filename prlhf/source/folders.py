"""Folders of data files: their splits and configurations, by the names of the files.

Names are such as `train.jsonl`, `train-00000-of-00002.parquet`, `data/train_prefs-….parquet`, `train/0000.parquet` (the
hub's converted parquet) and `CONFIG/train/0000.parquet`. Folders of `save_to_disk` are also read, with one data set or
a dictionary of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prlhf.errors import PrlhfError, nearest
from prlhf.source.formats import FORMATS, file_rows, form
from prlhf.source.raw import RawRows

# Files that describe the data
ASIDE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json", "config.json")
TRAIN = "train"
EVAL_NAMES = ("eval", "validation", "valid", "val", "dev", "test")  # the first one that exists is held out
KNOWN = (TRAIN, *EVAL_NAMES)

_SHARD = re.compile(r"[-._](\d{3,}(-of-\d+)?(-[0-9a-f]{8,})?|part[-_.]?\d+)$")
_NUMBERED = re.compile(r"(data|part|shard|file)?[-._]?\d*", re.IGNORECASE)  # names that do not name a split


def data_files(folder: Path) -> list[Path]:
    """Return the data files in a folder and its subfolders, sorted by path, without hidden and descriptive files.

    Raises:
        PrlhfError: a folder of `save_to_disk` is not complete.
    """
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
    """Return the files of one split; [] if there are none.

    Raises:
        PrlhfError: the files have several formats.
    """
    return _one_format(folder, split, splits_of(folder, data_files(folder)).get(split, []))


def folder_rows(source: str, names: Mapping[str, str]) -> dict[str, RawRows]:
    """Read each part of a data set from the folder `source`. `names`: the name of the split for each part.

    Raises:
        PrlhfError: `source` is not a folder, or a split is missing.
    """
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
    """Open a folder and return the rows of each split by its name.

    If no file is named after a split, all files are one split, named "". `config`: the name of a subfolder, if there
    is one for each configuration.

    Raises:
        PrlhfError: there is no data, no such configuration, or a choice between several is needed.
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
    """Group files by split: the file's name without the number of its shard, or else the name of its folder."""
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
    """Whether a name is that of a split, such as `train`, `train_prefs` or `test_sft`."""
    return re.split(r"[-._ ]", name.lower())[0] in KNOWN


def _configured(folder: Path, config: str | None) -> Path:
    inside = _configurations(folder)
    if config is not None:
        if config in inside or (folder / config).is_dir():
            return folder / config
        known = nearest(config, inside) if inside else "drop --config"
        raise PrlhfError(f"{folder} has no configuration '{config}'", known)
    if len(inside) > 1:
        names = ", ".join(inside)
        raise PrlhfError(f"{folder} has the configurations {names}", f"choose one: --config {inside[0]}")
    return folder


def _configurations(folder: Path) -> list[str]:
    """Names of subfolders that hold splits, as in `CONFIG/train/0000.parquet`."""
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
    """In a folder of `save_to_disk`, the files that it lists; others are caches of `datasets`."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = {str(file["filename"]) for file in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return files
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise PrlhfError(f"{folder} is not complete: {missing[0]} is missing", "save the data set again")
    return [path for path in files if path.name in names]


def _one_format(folder: Path, split: str, files: list[Path]) -> list[Path]:
    if len({form(path) for path in files}) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in files)
        what = f"'{split}'" if split else "data"
        raise PrlhfError(f"{folder} holds {what} in several formats: {names}", "keep one of them, or name a file")
    return files
