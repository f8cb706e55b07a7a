"""`prlhf serve` as a function: check, load, listen, and serve until it is stopped."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from prlhf.config import ServeConfig
from prlhf.errors import PrlhfError
from prlhf.generate.decode_loop import serves
from prlhf.model.checkpoint import Policy, load_policy, model_folder, read_about
from prlhf.model.hub_run import found_run, hub_name
from prlhf.model.per_user import is_per_user
from prlhf.progress import SILENT, Progress
from prlhf.serve.app import build_app
from prlhf.serve.conversation_log import ConversationLog
from prlhf.serve.engine import ServingEngine
from prlhf.serve.keeper import Keeper, Keeping
from prlhf.serve.keys import check_host, read_keys
from prlhf.serve.roster import Roster
from prlhf.serve.service import Service

T = TypeVar("T")


def serve(run: Path, config: ServeConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Serve `run` until Ctrl-C or SIGTERM; what was begun is finished first, a second Ctrl-C ends at once.

    Returns:
        The summary: the run, the address, and how many tokens were written.

    Raises:
        PrlhfError: the settings, the run or the address cannot be served.
    """
    check_host(config)
    run = found_run(run, progress)
    with listening(config) as listener:
        service = open_service(run, config, progress)
        address = f"http://{in_url(config.host)}:{listener.getsockname()[1]}"
        listener.listen()  # a client that reads the address may come before uvicorn is ready
        progress.note(f"{service.name} at {address}/v1; Ctrl-C ends it")
        with stopped_by_signals():
            uvicorn.Server(settings(build_app(service), config)).run(sockets=[listener])
        return {"run": str(run), "address": address, "tokens": int(service.metrics.written())}


def open_service(run: Path, config: ServeConfig, progress: Progress = SILENT, keeper: Keeping | None = None) -> Service:
    """Load `run`, and start the engine. Without a `keeper` choices are kept here.

    Raises:
        PrlhfError: it cannot be served.
    """
    keys = read_keys(config.keys) if config.keys else None
    engine = in_a_thread(lambda: ServingEngine(load_served(run, config, progress), config))
    policy = engine.policy
    keeper = keeper or Keeper(run, config, progress)
    log = ConversationLog(keeper) if config.log_conversations else None
    return Service(model_name(run, config), run, policy, Roster(run, policy), engine, config, keeper, log, keys)


def model_name(run: Path, config: ServeConfig) -> str:
    """How requests name the model."""
    return config.name or (hub_name(run) or run.resolve().name).rpartition("/")[2]


def settings(app: Any, config: ServeConfig) -> uvicorn.Config:
    """How uvicorn runs the application `app`: quietly, since a log of requests would name users."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=max(1, int(config.timeout)),
    )


def check_served(run: Path) -> None:
    """Refuse a run that is seen not to be servable before it is loaded. Raises PrlhfError."""
    if is_per_user(run):
        raise PrlhfError(
            f"{run} has an adapter for each user, and a server has one model", "serve a run with a user model"
        )
    read_about(model_folder(run))


def load_served(run: Path, config: ServeConfig, progress: Progress = SILENT) -> Policy:
    """The policy of `run`, if it can be served.

    Raises:
        PrlhfError: it is not a policy, has an adapter per user, or is of a kind that the decode loop cannot serve.
    """
    check_served(run)
    where = config.device, config.precision, config.model, config.trust_remote_code
    policy = load_policy(run, *where, users=(), progress=progress)
    policy.model.requires_grad_(False).eval()
    if not serves(policy.model):
        raise PrlhfError(
            f"the base {policy.base.name} is of a kind that the decode loop does not serve",
            "write its responses with `prlhf generate`",
        )
    return policy


def in_a_thread(call: Callable[[], T]) -> T:
    """The result of `call` in a thread that is gone then.

    OpenMP's threads of a process no longer spin while they wait once they are more than the CPUs, and small products
    take twice as long. Each thread that computes has its own: those of whoever loads a model must end before others
    write with it.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # whatever it is, the caller gets it
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # nobody waits for it after Ctrl-C
    return result.result()


@contextmanager
def listening(config: ServeConfig) -> Iterator[socket.socket]:
    """A socket at the address of `config`. Raises PrlhfError if it cannot be had."""
    try:
        family = socket.getaddrinfo(config.host.strip("[]"), config.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        raise PrlhfError(
            f"cannot listen on {config.host}, port {config.port}: {error.strerror}", "choose another --host or --port"
        ) from error
    with listener:
        yield listener


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let uvicorn, which repeats a signal after it has stopped, end as if nothing had happened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda *_: None) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def in_url(host: str) -> str:
    """An address as it stands in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
