"""`prlhf serve --replicas N`: the application in several processes, as deployments of Ray Serve.

`Replica` has the model and answers; `Keeper` keeps choices and learns users from them, once for all. `prlhf serve`
stands before them itself; on Kubernetes `Entrance` does, behind Ray's own proxies.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Request, Response
from typing_extensions import override

from prlhf.cluster import check_fits, connected, worker_resources
from prlhf.config import ClusterConfig, ServeConfig
from prlhf.dataset import Text
from prlhf.errors import PrlhfError, one_line
from prlhf.model.hub_run import found_run
from prlhf.progress import SILENT, Progress
from prlhf.serve.app import build_app
from prlhf.serve.faults import ApiError
from prlhf.serve.front import Front
from prlhf.serve.keeper import Keeper, Keeping, KeptOf, place_of_choices
from prlhf.serve.keys import check_host, read_keys
from prlhf.serve.metrics import Numbers, tokens_told
from prlhf.serve.relay import answered
from prlhf.serve.run import check_served, in_url, listening, model_name, open_service, settings, stopped_by_signals

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # a log of requests would name users
TRIES = 3  # of starting a replica
KEEPER = "keeper"  # its name among the numbers


def serve_replicas(run: Path, config: ServeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Serve `run` by `config.replicas` processes until Ctrl-C or SIGTERM; what was begun is finished first.

    Returns:
        The summary: the run, the address, and how many tokens the replicas that are left wrote.

    Raises:
        PrlhfError: the settings, the run or the address cannot be served, or the cluster has no room.
    """
    check_host(config)
    run = found_run(run, progress)
    check_served(run)
    place_of_choices(run, config)
    keys = read_keys(config.keys) if config.keys else None
    name = model_name(run, config)
    with listening(config) as listener, connected(_cluster(config)), _deployed(run.resolve(), config) as handles:
        front = Front(*handles, name, config, keys)
        address = f"http://{in_url(config.host)}:{listener.getsockname()[1]}"
        listener.listen()
        progress.note(f"{name} at {address}/v1, by {config.replicas} replicas; Ctrl-C ends it")
        with stopped_by_signals():
            uvicorn.Server(settings(front.app(), config)).run(sockets=[listener])
        tokens = tokens_told(asyncio.run(front.numbers()))
        return {"run": str(run), "address": address, "tokens": tokens}


def build(args: dict[str, Any]) -> Any:
    """The application for a config file of Ray Serve. `args`: `run`, and keys of ServeConfig.

    Ray's proxies listen on all addresses, so that keys are needed.

    Raises:
        PrlhfError: the settings or the run cannot be served.
    """
    values = {"host": "0.0.0.0", "replicas": 1} | args
    run = Path(str(values.pop("run", ""))).resolve()
    config = ServeConfig.model_validate(values)
    check_host(config)
    check_served(run)
    replicas, keeper = application(run, config)
    options = {"max_ongoing_requests": 1000, "graceful_shutdown_timeout_s": config.timeout}
    return _deployment(Entrance, num_replicas=2, ray_actor_options={"num_cpus": 0}, **options).bind(
        replicas, keeper, str(run), config.model_dump(mode="json")
    )


def application(run: Path, config: ServeConfig) -> tuple[Any, Any]:
    """The deployments of replicas and keeper, bound to what they are made of.

    Raises:
        PrlhfError: the cluster has no room for so many replicas.
    """
    each = _resources(config)
    check_fits(config.replicas, each, "replicas")
    given = str(run), config.model_dump(mode="json"), os.getcwd()
    shared = {"graceful_shutdown_timeout_s": config.timeout, "max_constructor_retry_count": TRIES}
    keeper = _deployment(
        KeeperActor,
        name="Keeper",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100,
        **shared,
    ).bind(*given)
    replicas = _deployment(
        Replica,
        **replica_options(config),
        ray_actor_options={"num_cpus": each["CPU"], "num_gpus": each.get("GPU", 0)},
        **shared,
    )
    return replicas.bind(*given, keeper), keeper


def replica_options(config: ServeConfig) -> dict[str, Any]:
    """How many replicas there are, how much each takes, and who gets which request."""
    count: dict[str, Any] = {"num_replicas": config.replicas}
    each = config.batch_size + config.queue
    if config.max_replicas and config.max_replicas > config.replicas:
        bounds = {"min_replicas": config.replicas, "max_replicas": config.max_replicas}
        count = {"autoscaling_config": bounds | {"target_ongoing_requests": config.batch_size}}
    return count | {
        "max_ongoing_requests": each,
        "max_queued_requests": each * max(config.replicas, config.max_replicas or 0),  # a burst waits to be routed
        "health_check_timeout_s": 60,
        "request_router_config": {"request_router_class": ROUTER},
    }


class Replica:
    """In a process of its own: the model, and the application that answers by it."""

    def __init__(self, run: str, config: dict[str, Any], folder: str, keeper: Any) -> None:
        _go_to(folder)
        found = ServeConfig.model_validate(config)
        self._service = open_service(Path(run), found, keeper=FarKeeper(keeper))
        self._app = build_app(self._service)
        self._name = importlib.import_module("ray.serve").get_replica_context().replica_id.unique_id

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Yield the head of the answer to a request, and its body in parts, as `answered` does."""
        async with aclosing(answered(self._app, scope, body, [(b"x-prlhf-replica", self._name.encode())])) as parts:
            async for part in parts:
                yield part

    async def numbers(self) -> tuple[str, bytes]:
        """The name of this replica, and its numbers in Prometheus' text format."""
        return self._name, self._service.metrics.text()

    async def settle(self) -> None:
        """Wait until the conversations so far are kept."""
        if self._service.log:
            await asyncio.to_thread(self._service.log.settle)

    def check_health(self) -> None:
        """Raise RuntimeError where the engine's thread has ended."""
        if not self._service.engine.alive:
            raise RuntimeError("the engine has ended")

    async def __del__(self) -> None:
        """End as the server in one process does. Ray calls this after the last answer."""
        await asyncio.to_thread(self._service.close)


class KeeperActor:
    """In a process of its own: what keeps choices for all replicas."""

    def __init__(self, run: str, config: dict[str, Any], folder: str) -> None:
        _go_to(folder)
        self._keeper = Keeper(Path(run), ServeConfig.model_validate(config))
        self._numbers = Numbers()
        self._keeper.watch(self._numbers)

    async def call(self, name: str, *values: Any) -> Any:
        """What a method of the keeper returns."""
        return await asyncio.to_thread(getattr(self._keeper, name), *values)

    async def numbers(self) -> tuple[str, bytes]:
        """A name, and what was learned in Prometheus' text format."""
        return KEEPER, self._numbers.text()

    async def __del__(self) -> None:
        """End after the user who is being learned."""
        await asyncio.to_thread(self._keeper.close)


class FarKeeper(Keeping):
    """In a replica: asks the keeper, by its handle. Raises ApiError where that one is lost."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._errors = importlib.import_module("ray.exceptions")

    @override
    def add(self, user: str, prompt: Text, chosen: str, rejected: str) -> int:
        return int(self._ask("add", user, prompt, chosen, rejected))

    @override
    def kept_of(self, user: str) -> KeptOf:
        found: KeptOf = self._ask("kept_of", user)
        return found

    @override
    def undo(self, user: str, version: int | None) -> None:
        self._ask("undo", user, version)

    @override
    def log(self, user: str, asked: Sequence[tuple[Text, list[str]]]) -> None:
        self._ask("log", user, asked)

    @override
    def watch(self, numbers: Numbers) -> None:
        pass  # the keeper has its own numbers

    @override
    def close(self) -> None:
        pass  # other replicas need it

    def _ask(self, name: str, *values: Any) -> Any:
        try:
            return self._handle.call.remote(name, *values).result()
        except self._errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PrlhfError) else error) from None
        except self._errors.RayError:
            raise ApiError(503, "choices cannot be kept at the moment; try again", "lost", retry_after="5") from None


class Entrance:
    """Behind Ray's proxies: what `prlhf serve` does in its own process."""

    def __init__(self, replicas: Any, keeper: Any, run: str, config: dict[str, Any]) -> None:
        found = ServeConfig.model_validate(config)
        keys = read_keys(found.keys) if found.keys else None
        self._front = Front(replicas, keeper, model_name(Path(run), found), found, keys)

    async def __call__(self, request: Request) -> Response:
        """The answer to a request."""
        try:
            return await self._front.answer(request)
        except ApiError as error:
            return error.response()


@contextmanager
def _deployed(run: Path, config: ServeConfig) -> Iterator[tuple[Any, Any]]:
    """Handles of replicas and keeper on the cluster that this process is in; they end with the context."""
    serve = importlib.import_module("ray.serve")
    replicas, _ = application(run, config)
    name = f"prlhf-{model_name(run, config)}"
    if not config.verbose:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # one line for each request that a lost replica had
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        handle = serve.run(replicas, name=name, route_prefix=None, logging_config=QUIET)
        yield handle, serve.get_deployment_handle("Keeper", name)
        handle.broadcast("settle").results(timeout_s=config.timeout, return_exceptions=True)
    except RuntimeError as error:
        raise PrlhfError(f"the replicas do not start: {_reason(serve, name, error)}", "see --verbose") from error
    finally:
        _delete(serve, name, config.timeout)


def _delete(serve: Any, name: str, seconds: float) -> None:
    """End an application when all that it has begun has ended, or after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(TimeoutError):  # Ray waits a minute
            serve.delete(name)
            return


def _reason(serve: Any, name: str, error: RuntimeError) -> str:
    """Why an application does not start: our own error in a replica, if there is one."""
    found = serve.status().applications.get(name)
    told = [each.message for each in found.deployments.values()] if found else []
    ours = re.findall(r"PrlhfError: (.+)", "\n".join(told))
    return str(ours[-1]) if ours else one_line(error)


def _deployment(kind: type, **options: Any) -> Any:
    serve = importlib.import_module("ray.serve")
    return serve.deployment(kind, **options)


def _cluster(config: ServeConfig) -> ClusterConfig:
    return ClusterConfig(
        workers=config.replicas,
        ray_address=config.ray_address,
        gpus_per_worker=0 if config.device == "cpu" and config.gpus_per_replica is None else config.gpus_per_replica,
        cpus_per_worker=config.cpus_per_replica,
        verbose=config.verbose,
    )


def _resources(config: ServeConfig) -> dict[str, float]:
    return worker_resources(_cluster(config))


def _go_to(folder: str) -> None:
    """Names of files may be relative to where the command runs."""
    if Path(folder).is_dir():
        os.chdir(folder)
