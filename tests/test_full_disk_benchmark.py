"""benchmarks/full_disk.py on its cheapest stages: it passes if nothing is lost, and detects a loss."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import full_disk
from benchmarks.full_disk import Full, Undisturbed, fill, undisturbed


@pytest.mark.slow
def test_a_slice(capsys: pytest.CaptureFixture[str]) -> None:
    assert full_disk.main(2, 3, ["prep", "judge --checkpoint"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [["| prep", "1", "1", "1"], ["| judge --checkpoint", "1", "1", "1"]]


def said(code: int, text: str, write: dict[str, str]) -> Any:
    """A command that writes, prints and ends as given if the disk is full, and otherwise succeeds."""

    def command(line: list[str], work: Path, limit: int | None = None) -> tuple[int, str]:
        for name, content in (write if limit else {"out.jsonl": "1\n"}).items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return (code, text) if limit else (0, "")

    return command


@pytest.mark.parametrize(
    ("code", "text", "write", "expected"),
    [
        (2, "error: full\n", {}, None),
        (2, "\x1b[31merror:\x1b[0m full\n", {}, None),
        (2, "error: full\n", {"out.jsonl.partial": "1\n"}, "out.jsonl.partial is left over"),
        (1, "Traceback (most recent call last):\n", {}, "said, with code 1"),
        (2, "error: one\nerror: two\n", {}, "said, with code 2"),
        (2, "error: full\n", {"older": "changed"}, "lost: older"),
        (2, "error: full\n", {"out.jsonl": ""}, "out.jsonl is"),
        (2, "error: full\n", {".out.jsonl.7.partial": ""}, "left over: .out.jsonl.7.partial"),
        (2, "error: full\n", {"run/checkpoints/checkpoint-2/weights": ""}, "no seal: checkpoint-2"),
    ],
)
def test_what_is_wrong_is_seen(
    code: int, text: str, write: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(work: Path) -> None:
        work.mkdir()
        (work / "older").write_text("as it was")

    monkeypatch.setattr(full_disk, "command", said(code, text, write))
    full = Full("a stage", 1, ["generate"], begin=begin)
    whole: Undisturbed = undisturbed(full, tmp_path)
    assert whole.names == {"older", "out.jsonl"}
    wrong = fill(full, 0, whole, 1, tmp_path).wrong
    assert any(line.startswith(expected) for line in wrong) if expected else wrong == []
