"""metrics.jsonl, the log of a run: a line per optimizer step and per evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError, one_line
from prlhf.files import atomic_file, full_disk_named
from prlhf.parse import json_text


def append(path: Path, row: dict[str, Any]) -> None:
    """Append `row` to the log."""
    with full_disk_named(path), path.open("a", encoding="utf-8") as file:
        file.write(json_text(row) + "\n")


def put_evaluation(path: Path, step: int, summary: dict[str, Any]) -> None:
    """Log an evaluation; it replaces one of the same step that a killed run left."""
    rows = read(path)
    kept = [row for row in rows if row["step"] != step or "eval" not in row]
    if len(kept) < len(rows):
        _write(path, kept)
    append(path, {"step": step, "eval": summary})


def read(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_checked(path: Path) -> list[dict[str, Any]]:
    """As `read`, for a log that others may have changed. Raises PrlhfError if it is damaged."""
    try:
        rows = read(path)
        if not all(isinstance(row["step"], int) for row in rows):
            raise ValueError("a line has no step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "use a copy, or train again") from error
    return rows


def begin(path: Path, checkpoint: Path | None) -> None:
    """Reset the log to its state at `checkpoint`, or make an empty one: later steps will be logged again."""
    _write(path, read(checkpoint / path.name) if checkpoint else [])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_file(path) as beside:
        beside.write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")
