"""A small, fixed part of `make fuzz`: damaged input is accepted as a whole, or refused with one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data")]

# kind -> cases; "model", "run", "command line" and "sweep folder" take longer, and run only in `make fuzz`
SLICE = {
    "rows: custom": 40, "rows: tldr": 20, "rows: psoups": 20, "rows: prism": 20, "rows: few-shot": 30,
    "recipe": 20, "set": 20, "space": 20,
    "sweep's recipe": 10, "prepared data": 10, "base": 5, "reference cache": 10, "output": 5, "responses": 20,
    "prompts": 20, "verdict": 20, "answers": 10, "judge's files": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, prepared: Path, trained: Path) -> Any:
    from benchmarks.fuzz.kinds.material import Material, write_responses, write_talks

    found = Material(tmp_path_factory.mktemp("material"))
    for place, good in ((found.base, tiny_base), (found.data, prepared), (found.run, trained)):
        place.symlink_to(good)
    write_talks(found.talks)
    write_responses(found)
    return found


@pytest.mark.parametrize("kind", SLICE)
def test_damaged_input(kind: str, material: Any, tmp_path: Path) -> None:
    from benchmarks.fuzz.campaign import one

    outcomes = [one(kind, number, 0, material, tmp_path / str(number)) for number in range(SLICE[kind])]
    faults = [f"{outcome.number}: {outcome.about}: {outcome.line}\n{outcome.trace}" for outcome in outcomes]
    assert [fault for outcome, fault in zip(outcomes, faults, strict=True) if outcome.verdict == "fault"] == []


# ---- faults are detected ----


def outcome(tmp_path: Path, call: Any) -> Any:
    from benchmarks.fuzz.cases import Case, run

    (tmp_path / "in").write_text("as it was")
    return run("a kind", 0, Case("", call, [tmp_path / "in"], [tmp_path / "out"]))


def test_what_ends_as_it_should(tmp_path: Path) -> None:
    from prlhf.errors import PrlhfError

    def refuses() -> None:
        raise PrlhfError("x = 1 is refused", "set it to 2")

    assert outcome(tmp_path, (tmp_path / "out").mkdir).verdict == "accepted"
    assert outcome(tmp_path, refuses).verdict == "refused"


def test_every_fault_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.fuzz import cases
    from prlhf.errors import PrlhfError

    def writes_and_refuses() -> None:
        (tmp_path / "out").mkdir()
        raise PrlhfError("x = 1 is refused")

    def leaves_half() -> None:
        (tmp_path / "out/.x.1.partial").write_text("half")

    def hangs() -> None:
        while True:
            pass

    monkeypatch.setattr(cases, "SECONDS", 0.2)
    calls = {
        "ZeroDivisionError": lambda: 1 // 0,
        "SystemExit": lambda: sys.exit(1),
        "an input was changed": lambda: (tmp_path / "in").write_text("other"),
        "refused, and": writes_and_refuses,
        "left behind": leaves_half,
        "hang": hangs,
    }
    for expected, call in calls.items():
        found = outcome(tmp_path, call)
        assert found.verdict == "fault", expected
        assert found.line.startswith(expected)


def test_a_process_that_dies_is_a_fault_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from benchmarks.fuzz import campaign, kinds
    from benchmarks.fuzz.cases import Case

    def make(rng: Any, work: Path, material: Any) -> Case:
        return Case("", lambda: os.kill(os.getpid(), 9) if work.name == "1" else None)

    monkeypatch.setitem(kinds.KINDS, "dies", (1, make))
    found = list(campaign.outcomes("dies", 3, 0, None))
    assert [one.verdict for one in found] == ["accepted", "fault", "accepted"]
    assert found[1].line == "the process died (exit code -9)"


def test_a_case_that_cannot_be_made_ends_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.fuzz import campaign, kinds

    monkeypatch.setitem(kinds.KINDS, "broken", (1, lambda rng, work, material: 1 // 0))
    with pytest.raises(campaign.Broken, match="ZeroDivisionError"):
        list(campaign.outcomes("broken", 3, 0, None))
