"""Where a stage runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prlhf.config.keys import Needs, above_zero, key, refusal, unused
from prlhf.config.stage import Stage
from prlhf.errors import PrlhfError

ON_WORKERS = above_zero("workers")
SEVERAL = Needs("workers", lambda config: config.workers > 1, "2 or more")
TRAINS = ("train", "sweep")


class ClusterConfig(Stage):
    """Where a stage runs: in this process, or by Ray on `workers` processes of one machine or of many.

    Results do not depend on it, except for rounding.
    """

    refuses_unused = False  # a recipe for clusters also runs here; `check_cluster` refuses what was typed

    workers: int = key(
        0,
        "Ray workers (of each trial, in a sweep); 0: this process (a trial's own), without Ray.",
        panel="Ray workers",
        ge=0,
    )
    gpus_per_worker: float | None = key(
        None, "GPUs of each worker.", unset="1 where the cluster has any, else 0", used=[ON_WORKERS], ge=0
    )
    cpus_per_worker: float = key(1, "CPUs of each worker.", used=[ON_WORKERS], gt=0)
    ray_address: str | None = key(
        None,
        "A running Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
        unset="start one on this machine",
        used=[ON_WORKERS],
    )
    storage: str | None = key(
        None,
        "Folder or s3://… that all machines reach, for what must outlive one of them.",
        unset="the run folder",
        used=[ON_WORKERS],
        commands=["train"],
    )
    parallel: Literal["ddp", "fsdp"] = key(
        "ddp",
        "ddp: every worker has the whole model; fsdp: each has a shard of it.",
        used=[ON_WORKERS, SEVERAL],
        idle=["ddp"],
        commands=TRAINS,
    )
    max_failures: int = key(3, "How many lost workers the command survives.", used=[ON_WORKERS], ge=0)
    silence_minutes: float = key(
        60,
        "End a run whose workers say nothing for so many minutes; 0: never.",
        used=[ON_WORKERS],
        commands=TRAINS,
        ge=0,
    )
    verbose: bool = key(False, "Show Ray's own messages.", used=[ON_WORKERS])


def check_cluster(config: ClusterConfig, typed: Mapping[str, Any]) -> None:
    """Refuse settings of a cluster that were typed for a run in this process."""
    for name, need in unused(config.declared, config, typed).items():
        message, _ = refusal(name, need, config, typed[name])
        raise PrlhfError(message, f"add --workers N, N {need.words}, or leave it out")
