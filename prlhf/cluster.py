"""Ray, as all stages use it: started here or joined, quiet, asked what it has, and its workers' progress shown here.

Ray itself is imported when it is used: a run in one process does without.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from typing_extensions import override

from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError, one_line
from prlhf.progress import Progress

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
HANDED_ON = ("PRLHF_CACHE", "HF_HOME", "HF_HUB_OFFLINE")  # settings that workers on other machines need as well
POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0  # for a cluster's machine to answer; Ray itself tries for minutes, with warnings of its own

Event = tuple[str, tuple[Any, ...], dict[str, Any]]  # a method of `Progress`, and what it is called with


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Connect to a Ray cluster for as long as the context lasts.

    It is the one this process is already in, the one at `config.ray_address` (or at $RAY_ADDRESS, which Ray sets for
    jobs that are submitted to it), or one started here, whatever else runs on this machine. What is started here ends
    here. Raises PrlhfError where no cluster answers.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if config.verbose else logging.ERROR
    options: dict[str, Any] = {"log_to_driver": config.verbose, "logging_level": level, "configure_logging": True}
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    if address:
        settings = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        options |= {"address": address, "runtime_env": {"env_vars": settings}}
    else:
        options |= {"address": "local", "include_dashboard": False}
    try:
        if address:
            _check_answers(address)
        ray.init(**options)
    except (ImportError, RuntimeError, ValueError, OSError) as error:  # ray:// needs ray[client]
        if not address:
            raise PrlhfError(
                f"Ray does not start: {one_line(error)}", "see --verbose, or leave out --workers"
            ) from error
        raise PrlhfError(
            f"no Ray cluster answers at ray_address = {address}: {one_line(error)}",
            "start one there with `ray start --head`, with RAY_AUTH_MODE=token and the same ~/.ray/auth_token there as "
            "here (docs/CLUSTER.md); or leave it out to start one here",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise OSError where nothing listens at `address`, ValueError where it is none."""
    if address == "auto":
        found = address_of_auto()
        if found is None:
            return
        address = found
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError("it is neither auto nor HOST:PORT nor ray://HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def worker_resources(config: ClusterConfig) -> dict[str, float]:
    """What one worker takes, by Ray's names; asks the cluster whether it has GPUs where the config leaves it open.

    A cluster that can grow has those that may still come.
    """
    ray = importlib.import_module("ray")
    gpus = config.gpus_per_worker
    if gpus is None:
        later = any(machine.get("GPU") and count for machine, count in _to_come())
        gpus = 1.0 if later or ray.cluster_resources().get("GPU") else 0.0
    return {"CPU": config.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def check_fits(workers: int, each: dict[str, float], what: str = "workers") -> None:
    """Raise PrlhfError where the cluster can never place `workers` of `each`; Ray itself would wait without limit.

    A cluster that can grow is taken at its full size. `what`: the name of the number in the message.
    """
    there = capacity(each)
    if there < workers and not _can_grow(workers, each):
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
        nodes = "; ".join(
            ", ".join(f"{node.get(name, 0):g} {name}" for name in sorted({"CPU", "GPU", *each})) for node in _nodes()
        )
        raise PrlhfError(
            f"{what} = {workers} of {wanted} each do not fit: the cluster has {nodes}",
            f"ask for at most {there} {what}, or give each less" if there else "give each worker less",
        )


def capacity(each: dict[str, float]) -> int:
    """How many of `each` the cluster has room for when nothing else runs on it."""
    return sum(_capacity_of(node, each) for node in _nodes())


def _nodes() -> list[dict[str, float]]:
    ray = importlib.import_module("ray")
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _capacity_of(node: dict[str, float], each: dict[str, float]) -> int:
    return min(int(node.get(name, 0) / amount + 1e-9) for name, amount in each.items())


def _can_grow(workers: int, each: dict[str, float]) -> bool:
    """Whether an autoscaler could start machines enough; a cluster without one starts none."""
    return sum(_capacity_of(machine, each) * count for machine, count in _to_come()) >= workers


def _to_come() -> list[tuple[dict[str, float], float]]:
    """The kinds of machines that an autoscaler may run: what one has, and how many there can be."""
    return [(machine, math.inf if count < 0 else count) for machine, count in machines_to_come()]


def actor_here(kind: type) -> Any:
    """Start an actor of `kind` on the machine of the caller.

    Nobody can ask the actor without that machine, and no other machine's death ends it.
    """
    ray = importlib.import_module("ray")
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here).remote()


class Mailbox:
    """Holds events, in the order in which they came, until they are taken. As an actor, between machines.

    Not `ray.util.queue.Queue`: its actor runs calls side by side, and events overtake each other.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Add an event at the end."""
        self._events.append(event)

    def take(self) -> list[Event]:
        """Return the events that came since the last call, and forget them."""
        taken, self._events = self._events, []
        return taken


class Relay(Progress):
    """A `Progress` to be handed to a worker: what it receives goes to whoever holds the other end of `mailbox`.

    Steps are sent without waiting: a bar must not slow them. What ends them, or is said once, is waited for, and
    with it all that came before: a worker may end right after.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox  # the actor

    @override
    def start(self, label: str, total: int) -> None:
        self._tell("start", label, total)

    @override
    def advance(self, steps: int = 1, **values: float) -> None:
        self._tell("advance", steps, **values)

    @override
    def finish(self) -> None:
        self._wait_for(self._tell("finish"))

    @override
    def note(self, line: str) -> None:
        self._wait_for(self._tell("note", line))

    def report(self, row: dict[str, float]) -> None:
        """A row of an evaluation, for the `report` that `shown_by` was given."""
        self._wait_for(self._tell("report", row))

    def _tell(self, name: str, *args: Any, **values: Any) -> Any:
        return self._mailbox.put.remote((name, args, values))

    def _wait_for(self, told: Any) -> None:
        ray = importlib.import_module("ray")
        with suppress(ray.exceptions.RayError):  # nobody listens any more: no reason to fail
            ray.get(told, timeout=ANSWER_SECONDS)


@contextmanager
def shown_by(progress: Progress, report: Callable[[dict[str, float]], None] | None = None) -> Iterator[Relay]:
    """A relay for workers whose events `progress` shows while the context lasts; rows they report go to `report`."""
    ray = importlib.import_module("ray")
    mailbox = actor_here(Mailbox)
    over = threading.Event()

    def show() -> None:
        last = False
        while not last:
            last = over.wait(POLL_SECONDS)  # looked at before the events: none that came before it is left out
            try:
                waiting = ray.get(mailbox.take.remote(), timeout=ANSWER_SECONDS)
            except ray.exceptions.GetTimeoutError:  # a busy cluster; it will answer
                continue
            except ray.exceptions.RayError:
                return
            for name, args, values in waiting:
                if name != "report":
                    getattr(progress, name)(*args, **values)
                elif report:
                    report(*args)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield Relay(mailbox)
    finally:
        over.set()
        thread.join(timeout=2 * ANSWER_SECONDS)
        ray.kill(mailbox)


# ---- what Ray tells only under private names: a plain answer where the name is gone ----


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
