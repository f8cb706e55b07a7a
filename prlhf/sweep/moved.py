"""Data that moved between two tries of a sweep: its trials are told by what their data hold, not by where they lie."""

from __future__ import annotations

import re
from pathlib import Path

from prlhf.dataset import read_manifest
from prlhf.errors import PrlhfError
from prlhf.sweep.trials import Trial

_HASH = re.compile(r"^# data: ([0-9a-f]{64})$", re.MULTILINE)


def relocate(known: list[Trial], out: Path, folders: list[str]) -> None:
    """Have the `known` trials of the sweep in `out` say where their data are now, one of `folders`.

    Raises PrlhfError where a folder holds other data than its trials were trained on.
    """
    holds = {folder: str(read_manifest(Path(folder))["content_hash"]) for folder in folders}
    places: dict[str, str] = {}
    for trial in known:
        before, trained_on = str(trial.config.get("dataset")), _content_of(out / trial.name)
        if trained_on is None or holds.get(before) == trained_on:
            continue
        if before in holds:
            raise PrlhfError(f"the data in {before} changed since {out} was started", "choose another --out")
        places[before] = next((folder for folder, content in holds.items() if content == trained_on), before)
    for trial in known:
        for values in (trial.config, trial.point):
            if "dataset" in values:
                values["dataset"] = places.get(str(values["dataset"]), values["dataset"])


def _content_of(run: Path) -> str | None:
    """The content hash of the data that the run was trained on; None where it has not begun."""
    try:
        found = _HASH.search((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found[1] if found else None
