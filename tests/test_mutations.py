"""The table of faults for `make mutants`: each one applies to the code, and its tests exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutate import ROOT, Mutant, applied, mutants, outcome

ALL = list(mutants())


def test_there_are_enough_and_none_twice() -> None:
    assert len(ALL) >= 100
    assert len({(one.file, one.was, one.now) for one in ALL}) == len(ALL)
    assert {one.file.split("/")[1] for one in ALL} == {
        "train",
        "model",
        "generate",
        "data",
        "export",
        "online",
        "adapt",
        "view",
        "judge",
        "runs",
        "recipes.py",
        "serve",
        "choice_store.py",
        "lines.py",
    }


@pytest.mark.parametrize("one", ALL, ids=lambda one: f"{one.file}: {one.name}")
def test_a_fault_has_its_place_and_its_tests(one: Mutant) -> None:
    assert one.was != one.now
    compile(applied(one, ROOT), one.file, "exec")
    assert one.tests
    assert all((ROOT / test).is_file() for test in one.tests)


@pytest.mark.parametrize(("now", "said"), [("1 + 1", "SURVIVED"), ("3", "killed")])
def test_what_is_said_of_a_fault(tmp_path: Path, now: str, said: str) -> None:
    (tmp_path / "two.py").write_text("TWO = 2\n", encoding="utf-8")
    (tmp_path / "test_two.py").write_text(
        "from two import TWO\n\n\ndef test_two(): assert TWO == 2\n", encoding="utf-8"
    )
    assert outcome(Mutant("two.py", "another number", "2", now, ("test_two.py",)), tmp_path) == said
    assert (tmp_path / "two.py").read_text(encoding="utf-8") == "TWO = 2\n"


def test_a_fault_that_does_not_apply_is_reported(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("TWO = 2\n", encoding="utf-8")
    assert outcome(Mutant("two.py", "gone", "THREE", "", ()), tmp_path).startswith("GONE two.py: 0 times")
