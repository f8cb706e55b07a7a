"""`prlhf export` as a function: people of a run for other programs, a folder each, or together around one model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.export.apart import APART, write_apart
from prlhf.export.together import TOGETHER, write_together
from prlhf.model.checkpoint import model_folder, read_about
from prlhf.model.per_user import is_per_user
from prlhf.progress import Progress

FORMATS = {"peft": "peft", "gguf": "gguf", "hf": "", "hf-users": "", "vllm": "", "ollama": "gguf"}  # -> its package


def export(
    run: Path,
    users: Sequence[str],
    format: str,
    out: Path,
    base: str | None,
    trust_remote_code: bool,
    progress: Progress,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Write `users` in `format` to `out`, and compare what was written with the run.

    Users who act in the adapter get a folder each: `out` itself, or if there are several, a folder in it. Users in
    front of the prompt share one model. `precision`: in which whole models are written.

    Raises:
        PrlhfError: a user cannot be exported from `run`, a folder may not be written, or what was written differs.
    """
    _check_format(format)
    wanted = list(dict.fromkeys(users))
    if not wanted:
        raise PrlhfError("no user is named", "give --user ann, or --user generic; it can be repeated")
    vectors = _in_prompt(run)
    _check_place(run, format, vectors)
    write = write_together if vectors else write_apart
    people, compared = write(run, wanted, format, out, base, trust_remote_code, precision, progress)
    listed = [{"user": user, "folder": str(folder)} for user, folder in people.items()]
    comparison = {"rows": compared.rows, "difference": compared.difference} if compared else None
    return {"run": str(run), "format": format, "out": str(out), "people": listed, "compared": comparison}


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise PrlhfError(f"format '{format}' is not known", f"use {', '.join(FORMATS)}")
    package = FORMATS[format]
    if package and importlib.util.find_spec(package) is None:
        raise PrlhfError(f"writing {format} needs the package {package}", f"pip install 'prlhf[{package}]'")


def _in_prompt(run: Path) -> bool:
    """Whether `run` puts vectors of its users in front of the prompt."""
    return not is_per_user(run) and TrainConfig.saved(read_about(model_folder(run))["train"]).slots > 0


def _check_place(run: Path, format: str, vectors: bool) -> None:
    formats = TOGETHER if vectors else APART
    if format not in formats:
        place = "in front of the prompt" if vectors else "in the adapter, or nowhere"
        raise PrlhfError(
            f"{run} has its users {place}, which {format} does not hold", f"use --format {' or '.join(formats)}"
        )
