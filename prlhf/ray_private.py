"""What Ray tells only under private names, each behind a function with a plain answer where the name is gone."""

from __future__ import annotations

import importlib
from typing import Any


def address_of_auto() -> str | None:
    """HOST:PORT of the cluster that `auto` stands for: the one last started on this machine, which may be gone.

    None where Ray does not tell: then it is left to `ray.init` to find out.
    """
    try:
        found = importlib.import_module("ray._private.services").canonicalize_bootstrap_address("auto")
    except (ImportError, AttributeError, TypeError):
        return None
    return None if found is None else str(found)


def machines_to_come() -> list[tuple[dict[str, float], int]]:
    """The kinds of machines that an autoscaler may start: what each has, and how many at most (negative: no limit).

    [] without an autoscaler, and where Ray does not tell: the cluster is then taken as it is.
    """
    try:
        config: Any = importlib.import_module("ray._private.state").state.get_cluster_config()
        groups = config.node_group_configs if config else []
        return [(dict(group.resources), int(group.max_count)) for group in groups]
    except (ImportError, AttributeError, TypeError):
        return []
