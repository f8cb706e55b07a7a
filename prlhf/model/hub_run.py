"""Runs on the Hugging Face hub, as `prlhf push` wrote them: downloaded once, read from the cache, never changed."""

from __future__ import annotations

import os
from pathlib import Path

from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import ABOUT
from prlhf.progress import SILENT, Progress
from prlhf.source import hub

INSTEAD = "give the folder of a finished run"


def found_run(run: Path, progress: Progress = SILENT) -> Path:
    """The folder of `run`: itself, or what is downloaded if it is the id of a run on the hub, OWNER/NAME.

    What does not look like an id stays as it is. So does OWNER/NAME if there is a folder OWNER: then a run in it is
    meant, and the hub is not asked about a slip of the pen.

    Raises:
        PrlhfError: the hub has no such run, cannot be reached, or is forbidden and the run is not in its cache.
    """
    name = str(run)
    owner, _, rest = name.partition("/")
    if run.expanduser().exists() or not rest or "/" in rest or owner in (".", "..", "~") or Path(owner).exists():
        return run
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    hub.probe("model", name, INSTEAD)
    try:
        about = Path(hf_hub_download(name, ABOUT))
        progress.note(f"there is no folder {name} here: reading it from the hub")
        return Path(snapshot_download(name, revision=about.parent.name))
    except Exception as error:  # the hub and its client raise many types
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise PrlhfError(
                f"{name} on the hub is not a run of prlhf: it has no {ABOUT}", "give one that `prlhf push` wrote"
            ) from error
        told = hub.explain_error("model", name, error, INSTEAD)
        if told is None:
            raise
        raise PrlhfError(f"there is no folder {name} here, and {told[0]}", told[1]) from error


def hub_name(run: Path) -> str | None:
    """The id OWNER/NAME of a run in the hub's cache; None for other folders."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        first, kind, *_ = run.absolute().relative_to(os.path.abspath(HF_HUB_CACHE)).parts
    except ValueError:  # elsewhere
        return None
    return first.removeprefix("models--").replace("--", "/", 1) if kind == "snapshots" else None


def check_own(run: Path) -> None:
    """Check that `run` may be changed. Raises PrlhfError for one in the hub's cache, which others read too."""
    if (name := hub_name(run)) is not None:
        raise PrlhfError(f"{name} was read from the hub, and its copy in the cache stays as it is", "copy the folder")
