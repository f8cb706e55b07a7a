"""Experiment trackers (`report_to`), checked before a run loads or writes anything."""

from __future__ import annotations

import netrc
import os
from pathlib import Path

from prlhf.errors import PrlhfError, nearest

PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit", "dagshub": "dagshub mlflow"}
WANDB_HOST = "api.wandb.ai"


def tracker_names(report_to: str) -> list[str]:
    """The trackers that `report_to` names, separated by commas: none at all, those of transformers, or `all` there are.

    Raises PrlhfError for one that is unknown, not installed, or could not start without asking.
    """
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    names = list(dict.fromkeys(name.strip().lower() for name in report_to.split(",") if name.strip())) or ["none"]
    known = set(INTEGRATION_TO_CALLBACK)
    if len(names) > 1 and (alone := {"none", "all"} & set(names)):
        raise PrlhfError(f"report_to = {report_to} has '{alone.pop()}' beside others", "name trackers, or none, or all")
    if names == ["none"]:
        return []
    there = set(get_available_reporting_integrations())
    if "flyte" in names and _has_flyte():
        there.add("flyte")
    if names == ["all"]:
        names = sorted(there)
    for name in names:
        if name not in known:
            raise PrlhfError(f"report_to names an unknown tracker '{name}'", nearest(name, {*known, "none", "all"}))
        if name not in there:
            package = PACKAGES.get(name, name)
            raise PrlhfError(f"the tracker {name} is not installed", f"pip install {package}, or leave report_to out")
    if "wandb" in names and not _wandb_can_start():
        raise PrlhfError(
            "wandb would ask for a login: it has none here", "run `wandb login`, or set WANDB_MODE=offline"
        )
    return names


def _has_flyte() -> bool:
    from transformers.integrations.integration_utils import is_flytekit_available

    return bool(is_flytekit_available())


def _wandb_can_start() -> bool:
    """Whether Weights & Biases has a key, or needs none."""
    if os.environ.get("WANDB_MODE", "online").lower() != "online" or os.environ.get("WANDB_API_KEY"):
        return True
    host = (
        os.environ.get("WANDB_BASE_URL", f"https://{WANDB_HOST}")
        .partition("://")[2]
        .partition("/")[0]
        .partition(":")[0]
    )
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
