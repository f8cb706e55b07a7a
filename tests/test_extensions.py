"""Extensions by name: ours without imports, those of this process, and those of installed packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from prlhf import extensions
from prlhf.errors import PrlhfError
from prlhf.extensions import Registry

GROUP = "prlhf.tests"
KINDS = [each for each in vars(extensions).values() if isinstance(each, Registry)]


@pytest.fixture
def registry() -> Registry[Any]:
    return Registry("thing", GROUP, {"math": "tau pi"})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "loads": EntryPoint("loads", "json:loads", GROUP),
        "broken": EntryPoint("broken", "no_such_module:it", GROUP),
    }
    monkeypatch.setattr(extensions, "_installed", lambda group: found if group == GROUP else {})


@pytest.mark.usefixtures("installed")
def test_names_come_from_us_from_this_process_and_from_packages(registry: Registry[Any]) -> None:
    registry.register("mine", object(), __name__)
    assert list(registry) == ["tau", "pi", "mine", "loads", "broken"]
    assert "mine" in registry
    assert "other" not in registry


def test_a_registered_object_is_the_one_that_is_found(registry: Registry[Any]) -> None:
    mine = object()
    registry.register("mine", mine, __name__)
    assert registry["mine"] is mine


@pytest.mark.usefixtures("installed")
def test_an_entry_point_is_loaded_when_it_is_asked_for(registry: Registry[Any]) -> None:
    import json

    assert registry["loads"] is json.loads


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_imported_is_one_line(registry: Registry[Any]) -> None:
    with pytest.raises(PrlhfError, match=r"thing 'broken' of .* cannot be imported: No module named 'no_such_module'"):
        registry["broken"]


def test_an_unknown_name_is_refused_with_the_nearest(registry: Registry[Any]) -> None:
    registry.register("mine", object(), __name__)
    with pytest.raises(PrlhfError, match=r"thing 'mime' is not known; did you mean 'mine'\?"):
        registry["mime"]


def test_nobody_takes_a_name_of_ours(registry: Registry[Any]) -> None:
    with pytest.raises(PrlhfError, match="prlhf has a thing 'pi' already"):
        registry.register("pi", object(), __name__)


def test_every_name_of_ours_is_registered_by_its_module() -> None:
    """The names in extensions.py are those of the decorators, in both directions."""
    for kind in KINDS:
        for name, module in kind.ours.items():
            assert kind[name], name
            assert {n for n, m in kind.ours.items() if m == module} <= set(kind._found)
        assert set(kind._found) == set(kind.ours)


def test_listing_names_imports_no_model() -> None:
    listing = "[list(kind) for kind in vars(e).values() if isinstance(kind, e.Registry)]"
    code = f"import sys; from prlhf import extensions as e; {listing}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
