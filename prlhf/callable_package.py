"""Packages that are commands as well: `prlhf.train(...)` beside `prlhf.train.run`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CommandPackage(ModuleType):
    """A package that, when called, is the function of its name in `prlhf.api`, which is imported then."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Call the function; `help(prlhf.api)` has what it takes."""
        return getattr(importlib.import_module("prlhf.api"), self.__name__.rpartition(".")[2])(*args, **settings)


def make_callable(package: str) -> None:
    """Let the package of this name, which is being imported, be called."""
    sys.modules[package].__class__ = CommandPackage
