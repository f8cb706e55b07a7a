"""What the data in a folder were made of, against what is asked for: neither used nor replaced in silence."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig
from prlhf.dataset import is_prepared, read_manifest
from prlhf.errors import PrlhfError
from prlhf.extensions import DATA_SETS
from prlhf.source.files import local_path

FLAGS = {"text": "--preference-text", "bad_rows": "--skip-bad"}  # of `prlhf prep`, where a key's own name is not it


def refuse_other_options(folder: Path, config: PrepConfig, hint: str) -> None:
    """Raise PrlhfError where the data in `folder` are not what `config` would make of its data set."""
    if difference := _difference(folder, config):
        raise _other(folder, *difference, hint)


def refuse_to_replace(config: PrepConfig) -> None:
    """A default folder keeps the data of another source, and those made with other options; raises PrlhfError.

    What is damaged may be made again.
    """
    folder = config.folder
    if config.out is not None or not is_prepared(folder):
        return
    try:
        there = read_manifest(folder)
    except PrlhfError:
        return
    hint = f"add --out {_beside(folder, config)[0]}, or --out {folder} to replace it"
    if (one := _source_of(there)) != (other := _source(config)):
        raise PrlhfError(f"{folder} holds the data of {one}, not of {other}", hint)
    refuse_other_options(folder, config, hint)


def choices(folder: Path, config: PrepConfig, option: str) -> str:
    """What to type where `folder` has data made with other options. `option`: how the command names a data set."""
    beside, there = _beside(folder, config)
    again = "" if there else f"run `{_command(config, beside)}` and "
    return f"{again}add {option}{beside}, or add {option}{folder} to use it as it is"


def _difference(folder: Path, config: PrepConfig) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its key, its value there and the one that is wanted."""
    there = read_manifest(folder)
    options = there.get("options")
    made = {
        "dataset": there.get("dataset"),
        "seed": there.get("seed"),
        **(options if isinstance(options, dict) else {}),
    }
    if config.source:
        made, config = made | {"source": _source_of(there)}, config.model_copy(update={"source": _source(config)})
    for key, value in _asked(config, made):
        before = made.get(key, PrepConfig.model_fields[key].default)
        a_path = key == "dataset" and value not in DATA_SETS  # which may be written in another way
        if before != value and not (a_path and _named(str(before)) == _named(value)):
            return key, before, value
    return None


def _asked(config: PrepConfig, made: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and the values that `config` has for them, of all that made the data there or are given now."""
    defaults = DATA_SETS[config.dataset].defaults if config.dataset in DATA_SETS else {}
    for key in dict.fromkeys([*made, *config.given()]):
        if key in PrepConfig.model_fields and key not in ("out", *({"source"} - made.keys())):
            value = getattr(config, key)
            yield key, defaults.get(key) if value is None else value


def _other(folder: Path, key: str, before: Any, now: Any, hint: str) -> PrlhfError:
    return PrlhfError(f"{folder} was prepared with {key} = {before}, not {now}", hint)


def _source(config: PrepConfig) -> str:
    """What `config` reads: a file or a folder in full, or the name of a data set."""
    return _named(config.source or config.dataset)


def _source_of(manifest: dict[str, Any]) -> str:
    source, dataset = str(manifest.get("source")), str(manifest.get("dataset"))
    local = dataset not in DATA_SETS or local_path(source).exists()
    return _named(source) if local else dataset


def _named(source: str) -> str:
    path = local_path(source)
    return str(path.resolve()) if path.exists() else source


def _beside(folder: Path, config: PrepConfig) -> tuple[Path, bool]:
    """A folder beside `folder` for what `config` makes, and whether it is there already."""
    number = 2
    while (beside := folder.with_name(f"{folder.name}-{number}")).exists():
        if is_prepared(beside) and _difference(beside, config) is None:
            return beside, True
        number += 1
    return beside, False


def _command(config: PrepConfig, out: Path) -> str:
    """The `prlhf prep` that makes what `config` says in `out`."""
    words = ["prlhf", "prep", config.dataset]
    for key, value in config.given().items():
        if key in FLAGS:
            words.append(FLAGS[key])
        elif key not in ("dataset", "out"):
            words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", str(out)])
