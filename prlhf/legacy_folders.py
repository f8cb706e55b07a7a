"""Folders of version 0.1, which wrote no marker: their kind is recognized by the content of their files.

The name of a file is not enough, because other programs also write `manifest.json`, `results.json` and `recipe.yaml`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MOST = 64 * 2**20  # bytes; larger JSON files are not read (only results of very many users would be larger)
HASH = re.compile(r"[0-9a-f]{64}")
RUN = re.compile(r"# prlhf train .*\n# data: [0-9a-f]{64}\n")
SWEEP = re.compile(r"# .*\n# \w[\w ]*: prlhf sweep --resume --out ")
DEMO = {"data", "personalized", "vanilla", "responses", "results.json", "figure3.png"}


def legacy_kind(folder: Path) -> str | None:
    """Return the kind of `folder`, a key of `folders.KINDS`, or None if version 0.1 did not make it."""
    return next((kind for kind, holds in HOLDS if holds(folder)), None) if folder.is_dir() else None


def _is_dataset(folder: Path) -> bool:
    about = _json(folder / "manifest.json")
    tables = all((folder / f"{name}.parquet").is_file() for name in ("train", "eval", "users"))
    known = about.get("format") in ("plain", "conversational") and HASH.fullmatch(str(about.get("content_hash")))
    return tables and bool(known)


def _is_responses(folder: Path) -> bool:
    about = _json(folder / "manifest.json")
    counts = all(isinstance(about.get(key), int) for key in ("shards", "block", "responses"))
    settings = about.get("settings")
    known = about.get("format") in ("parquet", "jsonl") and isinstance(about.get("pairs"), str)
    return counts and known and isinstance(settings, dict) and "weights" in settings


def _is_judgement(folder: Path) -> bool:
    found = set(_json(folder / "results.json"))
    judged = {"judge", "seed"} <= found and bool(found & {"per_sample", "calibration"})
    return judged or {"run", "dataset", "seed", "readings"} <= found


def _is_run(folder: Path) -> bool:
    return bool(RUN.match(_head(folder / "recipe.yaml")))


def _is_sweep(folder: Path) -> bool:
    if SWEEP.match(_head(folder / "recipe.yaml")):
        return True
    first = _parsed(_head(folder / "results.jsonl", 2**20).partition("\n")[0])
    return {"name", "point", "config", "status"} <= set(first) and str(first["name"]).startswith("trial-")


def _is_demo(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    made_up = _is_dataset(folder / "data") and _json(folder / "data" / "manifest.json").get("dataset") == "demo"
    return made_up and names <= DEMO


def _is_model(folder: Path) -> bool:
    """Whether the folder holds a base model, from supervised fine-tuning or another source."""
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return has_weights and "model_type" in _json(folder / "config.json")


HOLDS = (
    ("run", _is_run),
    ("sweep", _is_sweep),
    ("dataset", _is_dataset),
    ("responses", _is_responses),
    ("judgement", _is_judgement),
    ("demo", _is_demo),
    ("model", _is_model),
)


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST:
            return {}
        return _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _head(path: Path, size: int = 4096) -> str:
    try:
        with path.open("rb") as file:
            return file.read(size).decode("utf-8", errors="replace")
    except OSError:
        return ""
