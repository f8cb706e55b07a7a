"""What can be registered by name: data sets, user models, losses, baselines and judges.

An extension is one object in one file, with everything the rest needs to know of it on the object. A decorator
registers it, in a script or notebook as in this package: `@data_set("mine")`, `@loss("mine")`. The names of our own
stand here, so that listing names imports nothing. Another package registers by an entry point of the kind's group:

    [project.entry-points."prlhf.judges"]
    polite = "my_package.judges:Polite"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from typing_extensions import override

from prlhf.errors import PrlhfError, nearest, one_line

T = TypeVar("T")
K = TypeVar("K", bound=type)


class Registry(Mapping[str, T], Generic[T]):
    """The extensions of one kind by name; one is imported when it is asked for."""

    def __init__(self, kind: str, group: str, ours: Mapping[str, str]) -> None:
        """Take the kind, as messages name it, its group of entry points, and our modules, each with its names."""
        self.kind, self.group = kind, group
        self.ours = {name: module for module, names in ours.items() for name in names.split()}
        self._found: dict[str, T] = {}

    def register(self, name: str, extension: T, module: str) -> None:
        """Add `extension`, defined in `module`. Raises PrlhfError if `name` is one of ours."""
        if self.ours.get(name, module) != module:
            raise PrlhfError(f"prlhf has a {self.kind} '{name}' already", "choose another name")
        self._found[name] = extension

    def decorator(self, name: str) -> Callable[[K], K]:
        """What registers the decorated class as `name`."""

        def register(kind: K) -> K:
            self.register(name, kind, kind.__module__)  # type: ignore[arg-type]
            return kind

        return register

    @override
    def __iter__(self) -> Iterator[str]:
        """All names: our own, then those registered in this process, then those of installed packages."""
        return iter(dict.fromkeys([*self.ours, *self._found, *_installed(self.group)]))

    @override
    def __len__(self) -> int:
        return len(list(iter(self)))

    @override
    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self._found or name in _installed(self.group)

    @override
    def __getitem__(self, name: str) -> T:
        """The extension called `name`.

        Raises:
            PrlhfError: no extension has that name, or the package that offers it cannot be imported.
        """
        if name not in self._found and name in self.ours:
            import_module(self.ours[name])
        if name not in self._found and name in _installed(self.group):
            self._found[name] = self._load(_installed(self.group)[name])
        if name not in self._found:
            raise PrlhfError(f"{self.kind} '{name}' is not known", nearest(name, self))
        return self._found[name]

    def _load(self, entry: EntryPoint) -> T:
        try:
            extension: T = entry.load()
        except Exception as error:  # the package's own code may raise anything
            package = entry.dist.name if entry.dist else entry.value
            why = f"{self.kind} '{entry.name}' of {package} cannot be imported: {one_line(error)}"
            raise PrlhfError(why, f"repair or remove {package}") from error
        return extension


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


DATA_SETS: Registry[Any] = Registry(
    "data set",
    "prlhf.data_sets",
    {
        "prlhf.data.demo": "demo",
        "prlhf.data.demo_profiles": "demo-profiles",
        "prlhf.data.demo_crowd": "demo-crowd",
        "prlhf.data.tldr": "tldr",
        "prlhf.data.prism": "prism",
        "prlhf.data.psoups": "psoups",
        "prlhf.data.personalllm": "personalllm",
        "prlhf.data.personalrewardbench": "personalrewardbench",
        "prlhf.data.ultrafeedback": "ultrafeedback",
    },
)

USER_MODELS: Registry[Any] = Registry(
    "user model", "prlhf.user_models", {"prlhf.model.user_models": "uniform individual cluster"}
)

LOSSES: Registry[Any] = Registry(  # the names are TRL's
    "loss",
    "prlhf.losses",
    {
        "prlhf.train.losses": "sigmoid sigmoid_norm robust exo_pair hinge ipo sppo_hard nca_pair apo_zero apo_down "
        "discopop"
    },
)

BASELINES: Registry[Any] = Registry(
    "baseline", "prlhf.baselines", {"prlhf.generate.baselines": "none base oracle in-context chosen"}
)

JUDGES: Registry[Any] = Registry(
    "judge",
    "prlhf.judges",
    {
        "prlhf.judge.judges": "rule:shorter rule:longer",
        "prlhf.judge.oracle": "oracle",
        "prlhf.judge.reward": "reward",
        "prlhf.judge.llm.judge": "llm",
    },
)
