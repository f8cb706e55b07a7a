"""The files that a command leaves in a folder, without times, so that they can be compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PARSED = (".json", ".jsonl")
OF_THIS_TRY = ("reference", "calls", "cost")  # computed and cached log-probs; calls to a judge, which were not repeated


def left_in(folder: Path, but: Sequence[str] = ()) -> dict[str, Any]:
    """Return the files below `folder` that match none of the patterns `but`: parsed JSON without times, or a hash."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in but):
            found[name] = _read(path)
    return found


def _read(path: Path) -> Any:
    if path.suffix not in PARSED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    text = path.read_text(encoding="utf-8")
    try:
        rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except ValueError:
        return f"no JSON: {text[-80:]!r}"
    return timeless(rows)


def timeless(value: Any) -> Any:
    """Remove times and the amount of work that was already done. PEFT writes a set as a list."""
    if isinstance(value, dict):
        value = value | ({"target_modules": sorted(value["target_modules"])} if "target_modules" in value else {})
        return {key: timeless(inner) for key, inner in value.items() if "second" not in key and key not in OF_THIS_TRY}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(found: Any, wanted: Any, within: float = 0.0, where: str = "") -> Iterator[str]:
    """Describe the differences of two outcomes; numbers may differ by `within`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            place = f"{where}/{key}" if where else str(key)
            if key not in found or key not in wanted:
                yield f"{place} is {'missing' if key not in found else 'left over'}"
            else:
                yield from differences(found[key], wanted[key], within, place)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            yield from differences(one, other, within, f"{where}[{number}]")
    elif not _equal(found, wanted, within):
        yield f"{where} is {found!r:.60}, not {wanted!r:.60}"


def _equal(found: Any, wanted: Any, within: float) -> bool:
    if isinstance(found, float) and isinstance(wanted, float) and math.isfinite(found) and math.isfinite(wanted):
        return abs(found - wanted) <= within
    return bool(found == wanted) or (found != found and wanted != wanted)
