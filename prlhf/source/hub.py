"""The Hugging Face hub: its errors, for models and data sets alike, and reading its data sets."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from prlhf.errors import PrlhfError, one_line
from prlhf.source.raw import Raw, RawRows

CONVERTED = "refs/convert/parquet"  # the branch with every data set of the hub as parquet
Kind = Literal["model", "data set"]
PROBE_SECONDS = 3.0
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def is_offline() -> bool:
    """Return whether the environment forbids requests to the hub."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def endpoint() -> str:
    """Return the address of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def probe(kind: Kind, name: str, instead: str) -> None:
    """Connect to the hub once, because a hub that cannot be reached costs half a minute of retries.

    It does nothing offline, where the cache answers at once, or behind a proxy.

    Raises:
        PrlhfError: the hub cannot be reached. `instead`: the hint, how to do without it.
    """
    if is_offline() or set(urllib.request.getproxies()) & {"http", "https", "all"}:
        return
    address = urlsplit(endpoint())
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise PrlhfError(*_unreachable(kind, name, one_line(error), instead)) from error


def explain_error(kind: Kind, name: str, error: BaseException, instead: str) -> tuple[str, str] | None:
    """Return (message, hint) for an error of a request for `name`; None if the hub did not cause it.

    Other libraries wrap the errors of the hub's client, so the whole chain of causes is examined. `instead`: the hint
    if the hub cannot be reached, how to do without it.
    """
    chain = list(_causes(error))
    return (
        _disk(kind, name, chain) or _refused(kind, name, chain) or _answer(kind, name, chain, instead)
        or _lost(kind, name, chain, instead)
    )  # fmt: skip


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first(chain: list[BaseException], *kinds: type[BaseException]) -> Any:
    return next((error for error in chain if isinstance(error, kinds)), None)


def _disk(kind: Kind, name: str, chain: list[BaseException]) -> tuple[str, str] | None:
    """The cache folder on this machine is full or not writable."""
    from huggingface_hub.constants import HF_HOME

    numbers = {error.errno for error in chain if isinstance(error, OSError)}
    if numbers & set(FULL):
        return f"the disk is full: {kind} {name} does not fit into {HF_HOME}", "free some space, or set HF_HOME"
    if numbers & set(UNWRITABLE):
        return f"cannot write {kind} {name} into {HF_HOME}: no permission", "set HF_HOME to a folder of your own"
    return None


def _refused(kind: Kind, name: str, chain: list[BaseException]) -> tuple[str, str] | None:
    """The hub refuses the request: no access, no such revision, disabled, not found, or an invalid name."""
    from huggingface_hub import errors, get_token

    folder = "datasets/" if kind == "data set" else ""
    if _first(chain, errors.GatedRepoError):
        page = f"https://huggingface.co/{folder}{name}"
        return f"{kind} {name} needs access", f"accept its license at {page} and log in with `hf auth login`"
    if found := _first(chain, errors.RevisionNotFoundError):
        return f"{kind} {name} has no such revision: {one_line(found)}", "check the branch, tag or commit"
    if _first(chain, errors.DisabledRepoError):
        return f"the hub has disabled {kind} {name}", "choose another"
    if _first(chain, errors.RepositoryNotFoundError):
        who = "your login may read" if get_token() else "may be read without a login"
        return (
            f"the hub has no {kind} '{name}' that {who}",
            "check the spelling; if it is private, log in with `hf auth login` as someone who may read it",
        )
    if _first(chain, errors.HFValidationError):
        return f"'{name}' is neither a local path nor a valid name on the hub", "give a path that exists, or OWNER/NAME"
    return None


def _answer(kind: Kind, name: str, chain: list[BaseException], instead: str) -> tuple[str, str] | None:
    """The hub answered with another error status."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    answers = [e for e in chain if isinstance(e, HfHubHTTPError) and not isinstance(e, EntryNotFoundError)]
    status = next((e.response.status_code for e in answers if e.response is not None), None)
    if status is None:
        return None
    if status in (401, 403):
        return f"the hub refuses your login for {kind} {name} (status {status})", "log in again with `hf auth login`"
    if status == 429:
        return f"the hub got too many requests (status 429) for {kind} {name}", "try again in a few minutes"
    return f"the hub failed to give {kind} {name} (status {status})", f"try again later, or {instead}"


def _lost(kind: Kind, name: str, chain: list[BaseException], instead: str) -> tuple[str, str] | None:
    """No request was sent, or none was answered."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    network = [e for e in chain if isinstance(e, ConnectionError | TimeoutError) or type(e).__module__ in _CLIENTS]
    local = _first(chain, LocalEntryNotFoundError)
    if is_offline() and (network or local or _first(chain, OfflineModeIsEnabled)):
        return f"{kind} {name} is not in the cache, and HF_HUB_OFFLINE forbids the hub", f"unset it, or {instead}"
    if network or local:
        return _unreachable(kind, name, one_line(network[-1] if network else local), instead)
    return None


_CLIENTS = ("httpx", "httpx2", "requests.exceptions", "httpcore", "aiohttp.client_exceptions")


def _unreachable(kind: Kind, name: str, why: str, instead: str) -> tuple[str, str]:
    return (
        f"cannot reach the hub for {kind} {name} ({why or 'no answer'})",
        f"{instead}, or set HF_HUB_OFFLINE=1 to use a cached copy",
    )


# ---- data sets ----


def hub_splits(repo: str, instead: str, config: str | None = None, revision: str | None = None) -> dict[str, RawRows]:
    """Load the splits of a data set of the hub. `instead`: the command that does without the hub, for hints.

    Raises:
        PrlhfError: the data set cannot be loaded.
    """
    probe("data set", repo, instead)
    import datasets

    try:
        found = datasets.load_dataset(repo, config, revision=revision)
    except Exception as error:  # datasets, the hub and its client raise many types; all mean that there is no data
        raise PrlhfError(*_why_not(repo, error, instead)) from error
    return {str(name): RawRows(len(rows), _hub_rows(f"{repo}[{name}]", rows)) for name, rows in found.items()}


def hub_parts(
    repo: str, names: Mapping[str, str], instead: str, config: str | None = None, revision: str | None = None
) -> dict[str, RawRows]:
    """Load each part of a data set of the hub. `names`: the name of the split for each part.

    Raises:
        PrlhfError: the data set cannot be loaded, or a split is missing.
    """
    splits = hub_splits(repo, instead, config, revision)
    for name in names.values():
        if name not in splits:
            where = f"{repo} at {revision}" if revision else repo
            raise PrlhfError(f"{where} has no split '{name}'", instead)
    return {part: splits[name] for part, name in names.items()}


def _hub_rows(name: str, rows: Iterable[Any]) -> Iterator[Raw]:
    for number, value in enumerate(rows, start=1):
        yield Raw(f"{name}:row {number}", value)


def _why_not(repo: str, error: Exception, instead: str) -> tuple[str, str]:
    """Return the message and the hint for an error of `datasets`."""
    said = one_line(error) or type(error).__name__
    if "scripts are no longer supported" in said:
        return f"data set {repo} is a script, which prlhf does not run", f"read its parquet: --revision {CONVERTED}"
    if "Config name is missing" in said or "BuilderConfig" in said:
        return f"data set {repo} has several configurations ({said})", "choose one with --config NAME"
    if explained := explain_error("data set", repo, _asked_again(repo, error), instead):
        return explained
    if "doesn't exist on the Hub" in said:
        return f"the hub has no data set '{repo}'", "check the spelling; if it is private, log in with `hf auth login`"
    if isinstance(error, ConnectionError):
        return f"cannot reach the hub for data set {repo} ({said})", instead
    return f"cannot load data set {repo} ({said})", instead


def _asked_again(repo: str, error: Exception) -> Exception:
    """Ask the hub itself, since `datasets` raises the same error for a gated, a private and a missing data set."""
    if type(error).__name__ != "DatasetNotFoundError" or is_offline():
        return error
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(repo, repo_type="dataset")
    except Exception as real:  # any error of the hub's client
        return real
    return error
