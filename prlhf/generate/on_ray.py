"""Blocks of jobs on Ray Data: a pool of actors, each with the model loaded once, and their rows back as they come.

The driver plans and keeps the output, so that workers need nothing of its disk but the run, and a block is finished
when it is the driver's. A block whose worker dies is written again by another.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prlhf.cluster import Relay, check_fits, connected, shown_by, worker_resources
from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError, one_line
from prlhf.generate.author import Assignment, Author
from prlhf.generate.decoding import Job
from prlhf.generate.output import Block
from prlhf.progress import Progress
from prlhf.responses import Response, parse_line, to_line


def write_on_ray(
    given: Assignment, blocks: Sequence[Block], cluster: ClusterConfig, progress: Progress
) -> Iterator[tuple[int, list[Response]]]:
    """(block, its rows) as blocks end, in any order. The bar that `progress` shows moves with every response."""
    if not cluster.verbose:  # the core's own lines; read when Ray starts
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with connected(cluster):
        each = resources(given, cluster)
        check_fits(cluster.workers, each)
        workers = min(cluster.workers, len(blocks))
        if workers < cluster.workers:
            progress.note(f"{len(blocks)} blocks are left, for as many workers; a smaller --block makes more")
        device = given.config.device if given.config.device != "auto" else "cuda" if each.get("GPU") else "cpu"
        given = replace(given, config=given.config.model_copy(update={"device": device}))
        tally = Tally(progress)
        with quiet(cluster), shown_by(tally) as relay, failures_named(cluster):
            for number, lines in _pool(given, blocks, workers, each, cluster.max_failures, relay):
                rows = [parse_line(line, f"block {number}") for line in lines.split("\n") if line]
                tally.settle(number, len(rows))
                yield number, rows


def resources(given: Assignment, cluster: ClusterConfig) -> dict[str, float]:
    """What a worker takes; no GPU where none is to be used."""
    if given.config.device == "cpu" and cluster.gpus_per_worker is None:
        cluster = cluster.model_copy(update={"gpus_per_worker": 0})
    return worker_resources(cluster)


def _pool(
    given: Assignment, blocks: Sequence[Block], workers: int, each: dict[str, float], max_failures: int, relay: Relay
) -> Iterator[tuple[int, str]]:
    """(block, its rows as lines) from a pool of `workers` actors."""
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = max_failures
    items = [{"block": block.number, "jobs": json.dumps([asdict(job) for job in block.jobs])} for block in blocks]
    rows = data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_args=(given, os.getcwd(), relay),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),  # none waits behind another's
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
        max_restarts=max_failures,
        max_task_retries=max_failures,
    )
    batches = iter(rows.iter_batches(batch_size=None, prefetch_batches=0))
    try:
        for batch in batches:
            for number, lines, refusal in zip(batch["block"], batch["lines"], batch["refusal"], strict=True):
                if refusal:
                    raise PrlhfError(*json.loads(refusal))
                yield int(number), str(lines)
    finally:
        getattr(batches, "close", lambda: None)()  # the actors go, where Ray stays


class Worker:
    """In an actor: writes blocks with a model that is loaded once."""

    def __init__(self, given: Assignment, folder: str, relay: Relay) -> None:
        if Path(folder).is_dir():  # names of bases and runs may be relative
            os.chdir(folder)
        self.relay, self.refusal, self.author = relay, "", None
        try:
            self.author = Author(given, relay)
        except PrlhfError as error:  # would be one of many lines of an actor's death
            self.refusal = json.dumps([error.message, error.hint])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """One block's jobs to its rows, or to what is to be said instead."""
        number, jobs = int(batch["block"][0]), [Job(**job) for job in json.loads(batch["jobs"][0])]
        lines: list[str] = []
        try:
            self.relay.advance(0, block=number)
            for rows in self.author.write(jobs) if self.author else ():
                lines += map(to_line, rows)
                self.relay.advance(len(rows), block=number)
        except PrlhfError as error:
            self.refusal = json.dumps([error.message, error.hint])
        return {"block": [number], "lines": ["".join(lines)], "refusal": [self.refusal]}


class Tally:
    """Moves a bar with what workers tell of their blocks: what is written again counts once, and a block that is
    there in full, whatever is still on its way."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.lock = progress, threading.Lock()
        self.written, self.settled, self.noted = Counter[int](), set[int](), set[str]()

    def start(self, label: str, total: int) -> None:
        self.progress.start(label, total)

    def advance(self, steps: int = 1, **values: float) -> None:
        """`steps` more responses of `block`; 0: it begins, perhaps anew."""
        block = int(values["block"])
        with self.lock:
            if block in self.settled:
                return
            more = steps or -self.written[block]
            self.written[block] += more
            self.progress.advance(more)

    def settle(self, block: int, count: int) -> None:
        with self.lock:
            self.settled.add(block)
            self.progress.advance(count - self.written.pop(block, 0))

    def finish(self) -> None:
        self.progress.finish()

    def note(self, line: str) -> None:
        """Said once, whoever says it."""
        if line not in self.noted:
            self.noted.add(line)
            self.progress.note(line)


@contextmanager
def quiet(cluster: ClusterConfig) -> Iterator[None]:
    """Ray Data's bars and lines on the terminal off, unless asked for; its files stay."""
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers if type(handler).__name__ == "PlainRayHandler"
    ]
    before = context.enable_progress_bars, [handler.level for handler in consoles]
    context.enable_progress_bars = False  # there is one of ours
    if not cluster.verbose:
        for handler in consoles:
            handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        for handler, level in zip(consoles, before[1], strict=True):
            handler.setLevel(level)


@contextmanager
def failures_named(cluster: ClusterConfig) -> Iterator[None]:
    """Workers that die again and again in one line. An error of ours in a worker stays a traceback."""
    errors = importlib.import_module("ray.exceptions")
    try:
        yield
    except (errors.ActorDiedError, errors.ActorUnavailableError, errors.OutOfMemoryError) as error:
        if isinstance(getattr(error, "cause", None), Exception):
            raise
        raise PrlhfError(
            f"workers died, more than max_failures = {cluster.max_failures} times: {one_line(error)}",
            "what is written is kept: run it again with fewer workers or a smaller --batch-size; --verbose says more",
        ) from error
