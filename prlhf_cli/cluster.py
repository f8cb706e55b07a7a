"""The options that say where a command runs, for all commands that can run on Ray workers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Workers = Annotated[int | None, typer.Option(help="Ray workers; 0 is this process, without Ray (default: 0).")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of each worker (default: 1 where the cluster has any, else 0).")]
Cpus = Annotated[float | None, typer.Option(help="CPUs of each worker (default: 1).")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: start one here)."),
]
Storage = Annotated[
    str | None, typer.Option(help="Folder or s3://… that all machines reach, for what must outlive one of them.")
]
Verbose = Annotated[bool | None, typer.Option("--verbose/--no-verbose", help="Show Ray's own messages.")]


def config_of(recipe: dict[str, Any], saved: dict[str, Any], flags: dict[str, Any]) -> Any:
    """The ClusterConfig of a recipe, a run to be resumed and the flags, the latter before the former.

    Takes out of `flags` what is not the command's own.
    """
    from prlhf.applies import check_cluster
    from prlhf.config import ClusterConfig, resolve

    given = {key: flags.pop(key) for key in ClusterConfig.model_fields if key in flags}
    config = resolve(ClusterConfig, recipe.get("cluster", {}), saved, given)
    check_cluster(config, {key: value for key, value in given.items() if value is not None})
    return config
