"""Compare the settings that made the data in a folder with those asked for, before they are used or replaced."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prlhf.config import PrepConfig
from prlhf.dataset import is_prepared, read_manifest
from prlhf.errors import PrlhfError
from prlhf.extensions import DATA_SETS
from prlhf.recipes import option_of
from prlhf.source.formats import local_path


def refuse_other_options(folder: Path, config: PrepConfig, hint: str) -> None:
    """Check that the data in `folder` were prepared with the settings of `config`.

    Raises:
        PrlhfError: they were not, or the manifest is damaged; `hint` says what to do.
    """
    if difference := _difference(folder, config):
        raise _other(folder, *difference, hint)


def refuse_to_replace(config: PrepConfig) -> None:
    """Check that a default folder does not hold data of another source or of other settings.

    Damaged data may be replaced.

    Raises:
        PrlhfError: it does.
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
    """Return the hint for a folder with data of other settings. `option`: the text before the name of a data set."""
    beside, there = _beside(folder, config)
    again = "" if there else f"run `{_command(config, beside)}` and "
    return f"{again}add {option}{beside}, or add {option}{folder} to use it as it is"


def _difference(folder: Path, config: PrepConfig) -> tuple[str, Any, Any] | None:
    """The first setting that differs: its key, its value in the folder, and the wanted value."""
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
        a_path = key == "dataset" and value not in DATA_SETS  # the same path can be written in several ways
        if before != value and not (a_path and _named(str(before)) == _named(value)):
            return key, before, value
    return None


def _asked(config: PrepConfig, made: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys in `made` and the keys given in `config`, each with its value in `config`."""
    defaults = DATA_SETS[config.dataset].defaults if config.dataset in DATA_SETS else {}
    for key in dict.fromkeys([*made, *config.given()]):
        if key in PrepConfig.model_fields and key not in ("out", *({"source"} - made.keys())):
            value = getattr(config, key)
            yield key, defaults.get(key) if value is None else value


def _other(folder: Path, key: str, before: Any, now: Any, hint: str) -> PrlhfError:
    return PrlhfError(f"{folder} was prepared with {key} = {before}, not {now}", hint)


def _source(config: PrepConfig) -> str:
    """The source of `config`: the full path of a file or folder, or the name of a data set."""
    return _named(config.source or config.dataset)


def _source_of(manifest: dict[str, Any]) -> str:
    source, dataset = str(manifest.get("source")), str(manifest.get("dataset"))
    local = dataset not in DATA_SETS or local_path(source).exists()
    return _named(source) if local else dataset


def _named(source: str) -> str:
    path = local_path(source)
    return str(path.resolve()) if path.exists() else source


def _beside(folder: Path, config: PrepConfig) -> tuple[Path, bool]:
    """A folder for the data of `config` next to `folder`, and whether it already exists."""
    number = 2
    while (beside := folder.with_name(f"{folder.name}-{number}")).exists():
        if is_prepared(beside) and _difference(beside, config) is None:
            return beside, True
        number += 1
    return beside, False


def _command(config: PrepConfig, out: Path) -> str:
    """The command `prlhf prep` that prepares the data of `config` in `out`."""
    words = ["prlhf", "prep", config.dataset]
    for key, value in config.given().items():
        option, _, other = option_of(PrepConfig, key).partition("/")  # of --first/--second the default is the first
        if key not in ("dataset", "out"):
            words += [other or option] if other or isinstance(value, bool) else [option, str(value)]
    return shlex.join([*words, "--out", str(out)])
