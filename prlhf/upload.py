"""`prlhf push` as a function: the model of a run, or an export, to a repository of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prlhf.errors import PrlhfError
from prlhf.folders import what_is, words_of
from prlhf.model.checkpoint import model_folder
from prlhf.source import hub

PUSHED = ("model", "export", "adapter")  # kinds of folders
INSTEAD = "push it when the hub can be reached"


def push_folder(folder: Path, repo: str, public: bool) -> dict[str, Any]:
    """Upload the model of a run, an exported model or an exported adapter, in one commit. Other files there stay.

    A new repository is private unless `public`: rows, ids and texts of users are in these files.

    Raises:
        PrlhfError: `folder` is none of these, the hub cannot be reached, or it refuses.
    """
    source = model_folder(folder)
    if what_is(source) not in PUSHED:
        raise PrlhfError(f"{folder} is {words_of(folder)}", "give a finished run, or what `prlhf export` wrote")
    if hub.is_offline():
        raise PrlhfError(f"cannot push to {repo}: HF_HUB_OFFLINE forbids the hub", "unset it")
    hub.probe("model", repo, INSTEAD)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=source, commit_message=f"prlhf push {folder.name}")
    except Exception as error:  # the hub and its client raise many types
        told = hub.explain_error("model", repo, error, INSTEAD)
        if told is None:
            raise
        raise PrlhfError(*told) from error
    return {"folder": str(source), "repo": repo, "url": str(commit.commit_url)}
