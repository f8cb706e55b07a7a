"""Ray, as all stages use it: started here or joined, quiet, asked what it has, and its workers' progress shown here.

Ray itself is imported when it is used: a run in one process does without.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError, one_line
from prlhf.progress import Progress

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
HANDED_ON = ("PRLHF_CACHE", "HF_HOME", "HF_HUB_OFFLINE")  # settings that workers on other machines need as well
POLL_SECONDS = 0.2


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """With a Ray cluster: the one this process is already in, the one at `config.ray_address`, or one started here.

    What is started here ends here. Raises PrlhfError where no cluster answers.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if config.verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": config.verbose, "logging_level": level, "configure_logging": True}
    if config.ray_address:
        settings = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        options |= {"address": config.ray_address, "runtime_env": {"env_vars": settings}}
    else:
        options |= {"include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if not config.ray_address:
            raise PrlhfError(
                f"Ray does not start: {one_line(error)}", "see --verbose, or leave out --workers"
            ) from error
        raise PrlhfError(
            f"no Ray cluster answers at ray_address = {config.ray_address}: {one_line(error)}",
            "start one there with `ray start --head`, or leave it out to start one here",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def worker_resources(config: ClusterConfig) -> dict[str, float]:
    """What one worker takes, by Ray's names; asks the cluster whether it has GPUs where the config leaves it open."""
    ray = importlib.import_module("ray")
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    return {"CPU": config.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def check_fits(workers: int, each: dict[str, float], what: str = "workers") -> None:
    """Raise PrlhfError where the cluster can never place `workers` of `each`; Ray itself would wait for ever.

    A cluster that can grow is taken at its full size. `what`: the name of the number in the message.
    """
    there = room(each)
    if there < workers and not _can_grow(workers, each):
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
        nodes = "; ".join(
            ", ".join(f"{node.get(name, 0):g} {name}" for name in sorted({"CPU", "GPU", *each})) for node in _nodes()
        )
        raise PrlhfError(
            f"{what} = {workers} of {wanted} each do not fit: the cluster has {nodes}",
            f"ask for at most {there} {what}, or give each less" if there else "give each worker less",
        )


def room(each: dict[str, float]) -> int:
    """How many of `each` the cluster has room for when nothing else runs on it."""
    return sum(_room(node, each) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    ray = importlib.import_module("ray")
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(node: dict[str, float], each: dict[str, float]) -> int:
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in each.items())


def _can_grow(workers: int, each: dict[str, float]) -> bool:
    """Whether an autoscaler could add enough machines; a cluster without one has no such plan."""
    state = importlib.import_module("ray._private.state").state
    most = state.get_max_resources_from_cluster_config() or {}
    return bool(most) and all(most.get(name, 0) >= workers * amount for name, amount in each.items())


class Relay:
    """A `Progress` to be handed to a worker: what it is told goes to whoever holds the other end of `events`."""

    def __init__(self, events: Any) -> None:
        self._events = events  # a ray.util.queue.Queue

    def start(self, label: str, total: int) -> None:
        self._tell("start", label, total)

    def advance(self, steps: int = 1, **values: float) -> None:
        self._tell("advance", steps, **values)

    def finish(self) -> None:
        self._tell("finish")

    def note(self, line: str) -> None:
        self._tell("note", line)

    def _tell(self, name: str, *args: Any, **values: Any) -> None:
        self._events.actor.put_nowait.remote((name, args, values))  # not waited for: a bar must not slow a step


@contextmanager
def shown_by(progress: Progress) -> Iterator[Relay]:
    """A relay for workers whose events `progress` shows while the context lasts."""
    events = importlib.import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0})
    over = threading.Event()

    def show() -> None:
        while True:
            last = over.is_set()  # looked at before the events: none that came before it is left out
            try:
                waiting = events.get_nowait_batch(events.qsize())
            except (queue.Empty, importlib.import_module("ray").exceptions.RayError):
                return
            for name, args, values in waiting:
                getattr(progress, name)(*args, **values)
            if last:
                return
            over.wait(POLL_SECONDS)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield Relay(events)
    finally:
        over.set()
        thread.join(timeout=10)
        events.shutdown(force=True)
