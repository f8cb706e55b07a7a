"""`prlhf push` as a function: the model of a run, or an export, to a repository of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    make_repo(repo, public)
    from huggingface_hub import HfApi

    with _refusals_named(repo):
        about = f"prlhf push {folder.name}"
        commit = HfApi().upload_folder(repo_id=repo, folder_path=source, commit_message=about)
    return {"folder": str(source), "repo": repo, "url": str(commit.commit_url)}


def make_repo(repo: str, public: bool = False) -> None:
    """Make a repository, if it is missing; so it is known that one may write to it.

    Raises:
        PrlhfError: the hub cannot be reached, or it refuses.
    """
    if hub.is_offline():
        raise PrlhfError(f"cannot push to {repo}: HF_HUB_OFFLINE forbids the hub", "unset it")
    hub.probe("model", repo, INSTEAD)
    from huggingface_hub import HfApi

    with _refusals_named(repo):
        HfApi().create_repo(repo, private=not public, exist_ok=True)


@contextmanager
def _refusals_named(repo: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub and its client raise many types
        told = hub.explain_error("model", repo, error, INSTEAD)
        if told is None:
            raise
        raise PrlhfError(*told) from error


def then_pushed(train: Callable[[], dict[str, Any]], repo: str | None, per_user: bool) -> dict[str, Any]:
    """The summary of `train`, whose run is pushed to `repo` at the end, if one is given.

    The repository is made before: what the hub refuses is known before the training.

    Raises:
        PrlhfError: as `train`, and as `push_folder`, in which case the run is finished and stays.
    """
    if repo is None:
        return train()
    if per_user:
        raise PrlhfError(
            "a run with one adapter for each user is not one model to push", "leave out --push-to-hub, or --per-user"
        )
    make_repo(repo)
    summary = train()
    try:
        url = push_folder(Path(summary["run"]), repo, public=False)["url"]
    except PrlhfError as error:
        again = f"prlhf push {summary['run']} {repo}"
        raise PrlhfError(
            f"the run {summary['run']} is finished, but {error.message}", f"push it later: {again}"
        ) from error
    return summary | {"pushed": url}
