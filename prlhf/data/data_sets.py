"""Data sets that `prlhf prep` knows by name. To add one, write a function with the decorator `data_set`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.rows import LoadedData
from prlhf.extensions import DATA_SETS
from prlhf.progress import Progress

Load = Callable[[PrepConfig, Progress], LoadedData]


@dataclass(frozen=True)
class DataSet:
    """A known data set: how it is read, and the settings that apply to it."""

    load: Load
    uses: frozenset[str]  # keys of PrepConfig that apply, besides dataset, out, source and seed
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys that are None by default
    bundled_base: bool = False  # its texts are those of the bundled base, which is then the default model

    def __call__(self, config: PrepConfig, progress: Progress) -> LoadedData:
        """Read the data set.

        Raises:
            PrlhfError: the data cannot be read, or a row is refused.
        """
        return self.load(config, progress)


def data_set(
    name: str, uses: str = "", defaults: Mapping[str, Any] | None = None, bundled_base: bool = False
) -> Callable[[Load], DataSet]:
    """Register the decorated function as the data set `name`.

    Args:
        name: the name to type.
        uses: the keys of PrepConfig that apply, separated by blanks.
        defaults: values for keys that are None by default.
        bundled_base: whether the bundled base is the default model to train.
    """

    def register(load: Load) -> DataSet:
        made = DataSet(load, frozenset(uses.split()), defaults or {}, bundled_base)
        DATA_SETS.register(name, made, load.__module__)
        return made

    return register
