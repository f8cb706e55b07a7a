"""Data sets of the hub, read with `datasets`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prlhf import hub
from prlhf.errors import PrlhfError, one_line
from prlhf.source.formats import Raw, RawRows

CONVERTED = "refs/convert/parquet"  # the branch in which the hub keeps every data set as parquet


def hub_splits(repo: str, instead: str, config: str | None = None, revision: str | None = None) -> dict[str, RawRows]:
    """The splits of a hub data set. `instead`: the command that does without the hub, for the error's hint."""
    hub.probe("data set", repo, instead)
    import datasets

    try:
        found = datasets.load_dataset(repo, config, revision=revision)
    except Exception as error:  # datasets, the hub and its client each have errors of their own; all mean: no data
        raise PrlhfError(*_why_not(repo, error, instead)) from error
    return {str(name): RawRows(len(rows), _hub_rows(f"{repo}[{name}]", rows)) for name, rows in found.items()}


def _hub_rows(name: str, rows: Iterable[Any]) -> Iterator[Raw]:
    for number, value in enumerate(rows, start=1):
        yield Raw(f"{name}:row {number}", value)


def _why_not(repo: str, error: Exception, instead: str) -> tuple[str, str]:
    """The message and the hint for what `datasets` raised."""
    said = one_line(error) or type(error).__name__
    if "scripts are no longer supported" in said:
        return f"data set {repo} is a script, which is not run", f"read its parquet: --revision {CONVERTED}"
    if "Config name is missing" in said or "BuilderConfig" in said:
        return f"data set {repo} has several configurations ({said})", "choose one with --config NAME"
    if explained := hub.explain("data set", repo, _asked_again(repo, error), instead):
        return explained
    if "doesn't exist on the Hub" in said:
        return f"the hub has no data set '{repo}'", "check the spelling; if it is private, log in with `hf auth login`"
    if isinstance(error, ConnectionError):
        return f"cannot reach the hub for data set {repo} ({said})", instead
    return f"cannot load data set {repo} ({said})", instead


def _asked_again(repo: str, error: Exception) -> Exception:
    """The hub's own answer: `datasets` says the same of a data set that is gated, private or not there."""
    if type(error).__name__ != "DatasetNotFoundError" or hub.is_offline():
        return error
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(repo, repo_type="dataset")
    except Exception as real:  # whatever it is, the hub's client raised it
        return real
    return error
