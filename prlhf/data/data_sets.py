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
    """How a data set is read, and what else depends on which one it is."""

    load: Load
    uses: frozenset[str]  # the keys of PrepConfig that it reads, besides dataset, out, source and seed
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of those keys that are None unless given
    bundled_base: bool = False  # its texts are of the made-up forum, so the bundled base is trained on by default

    def __call__(self, config: PrepConfig, progress: Progress) -> LoadedData:
        """Read the data set. Raises PrlhfError."""
        return self.load(config, progress)


def data_set(
    name: str, uses: str = "", defaults: Mapping[str, Any] | None = None, bundled_base: bool = False
) -> Callable[[Load], DataSet]:
    """Register the decorated function as the data set `name`. `uses`: keys of PrepConfig, separated by blanks."""

    def register(load: Load) -> DataSet:
        made = DataSet(load, frozenset(uses.split()), defaults or {}, bundled_base)
        DATA_SETS.register(name, made, load.__module__)
        return made

    return register
