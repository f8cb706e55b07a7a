"""Write blocks of requests on Ray Data: a pool of actors, each of which loads the model once and returns rows.

The driver plans and stores the output: workers need only the run from its disk, and a block is finished when the driver
has it. If a worker dies, another worker writes its block again.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prlhf.cluster import Relay, actor_here, check_fits, connected, shown_by, worker_resources
from prlhf.config import ClusterConfig
from prlhf.errors import PrlhfError
from prlhf.generate.output import Block
from prlhf.generate.requests import WriteRequest
from prlhf.generate.writer import Writer, WriterSpec
from prlhf.progress import Progress
from prlhf.responses import Response, parse_line, to_line

CORE_LINE = re.compile(rb"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z] \d+ \d+\]")


def write_on_ray(
    spec: WriterSpec, blocks: Sequence[Block], cluster: ClusterConfig, progress: Progress
) -> Iterator[tuple[int, list[Response]]]:
    """Yield (block, its rows) as blocks end, in any order; moves the bar of `progress` with every response."""
    with connected(cluster):
        each = resources(spec, cluster)
        check_fits(cluster.workers, each)
        workers = min(cluster.workers, len(blocks))
        if workers < cluster.workers:
            progress.note(f"{len(blocks)} blocks are left, for as many workers; a smaller --block makes more")
        device = spec.config.device if spec.config.device != "auto" else "cuda" if each.get("GPU") else "cpu"
        spec = replace(spec, config=spec.config.model_copy(update={"device": device}))
        shown = BlockProgress(progress)
        with quiet(cluster), shown_by(shown) as relay:
            limit = RestartLimit(workers, cluster.max_failures)
            for number, lines in _pool(spec, blocks, workers, each, limit, relay):
                rows = [parse_line(line, f"block {number}") for line in lines.split("\n") if line]
                shown.settle(number, len(rows))
                yield number, rows


def resources(spec: WriterSpec, cluster: ClusterConfig) -> dict[str, float]:
    """What a worker needs; no GPU if `device` is cpu."""
    if spec.config.device == "cpu" and cluster.gpus_per_worker is None:
        cluster = cluster.model_copy(update={"gpus_per_worker": 0})
    return worker_resources(cluster)


def _pool(
    spec: WriterSpec, blocks: Sequence[Block], workers: int, each: dict[str, float], limit: RestartLimit, relay: Relay
) -> Iterator[tuple[int, str]]:
    """Yield (block, its rows as lines) from a pool of `workers` actors."""
    data = importlib.import_module("ray.data")
    items = [
        {"block": block.number, "requests": json.dumps([asdict(request) for request in block.requests])}
        for block in blocks
    ]
    rows = data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker,
        fn_constructor_args=(spec, os.getcwd(), limit, relay),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),  # no block waits for another
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
    )
    batches = iter(rows.iter_batches(batch_size=None, prefetch_batches=0))
    try:
        for batch in batches:
            for number, lines, refusal in zip(batch["block"], batch["lines"], batch["refusal"], strict=True):
                if refusal:
                    raise PrlhfError(*json.loads(refusal))
                yield int(number), str(lines)
    finally:
        getattr(batches, "close", lambda: None)()  # ends the actors if Ray continues


class Worker:
    """In an actor: loads the model once and writes blocks."""

    def __init__(self, spec: WriterSpec, folder: str, limit: RestartLimit, relay: Relay) -> None:
        if Path(folder).is_dir():  # names of bases and runs may be relative
            os.chdir(folder)
        self.relay, self.limit, self.refusal = relay, limit, ""
        with self.refusals():  # if raised here, it would be lost among the lines of a dying actor
            limit.loading()
            self.writer = Writer(spec, relay)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write one block: returns its rows, or the error that the driver must raise."""
        number, lines = int(batch["block"][0]), list[str]()
        if not self.refusal:
            with self.refusals():
                if self.limit.beginning(number):
                    self.relay.note(f"a worker was lost: block {number} is written again")
                self.relay.advance(0, block=number)
                for rows in self.writer.write(
                    [WriteRequest(**request) for request in json.loads(batch["requests"][0])]
                ):
                    lines += map(to_line, rows)
                    self.relay.advance(len(rows), block=number)
        return {"block": [number], "lines": ["".join(lines)], "refusal": [self.refusal]}

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Keep a PrlhfError that is raised in the context, for the driver to raise."""
        try:
            yield
        except PrlhfError as error:
            self.refusal = json.dumps([error.message, error.hint])


class RestartLimit:
    """Limits how often workers may be lost; Ray Data itself restarts them without limit."""

    def __init__(self, workers: int, most: int) -> None:
        self.workers, self.most = workers, most
        self.counts = actor_here(Counts)

    def loading(self) -> None:
        """Count a worker that loads the model. Raises PrlhfError if too many were lost before a block was begun."""
        self._check(self._ask("load") - self.workers, "loading the model")

    def beginning(self, block: int) -> bool:
        """Count that `block` is begun; returns whether it was begun before. Raises PrlhfError if that was too often."""
        again: int = self._ask("begin", block) - 1
        self._check(again, f"writing block {block}")
        return again > 0

    def _ask(self, name: str, *args: Any) -> int:
        return int(importlib.import_module("ray").get(getattr(self.counts, name).remote(*args)))

    def _check(self, lost: int, where: str) -> None:
        if lost > self.most:
            raise PrlhfError(
                f"{lost} workers in a row were lost {where}, more than max_failures = {self.most}",
                "they may have had too little memory: fewer workers, or a smaller --batch-size; a rerun goes on",
            )


class Counts:
    """The actor behind `RestartLimit`."""

    def __init__(self) -> None:
        self.loads, self.begun = 0, Counter[int]()

    def load(self) -> int:
        """Count a load; returns the number of loads since a block was begun."""
        self.loads += 1
        return self.loads

    def begin(self, block: int) -> int:
        """Count that `block` is begun; returns how often it was."""
        self.loads = 0
        self.begun[block] += 1
        return self.begun[block]


class BlockProgress:
    """Moves a bar as workers report on their blocks.

    Responses that are written again count once, and late reports on a complete block do not count.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress, self.lock = progress, threading.Lock()
        self.written, self.settled, self.noted = Counter[int](), set[int](), set[str]()

    def start(self, label: str, total: int) -> None:
        """Open the bar."""
        self.progress.start(label, total)

    def advance(self, steps: int = 1, **values: float) -> None:
        """Count `steps` more responses of `block`; 0: it begins, for the first time or again."""
        block = int(values["block"])
        with self.lock:
            if block in self.settled:
                return
            more = steps or -self.written[block]
            self.written[block] += more
            self.progress.advance(more)

    def settle(self, block: int, count: int) -> None:
        """Count `block` as complete, with its `count` responses."""
        with self.lock:
            self.settled.add(block)
            self.progress.advance(count - self.written.pop(block, 0))

    def finish(self) -> None:
        """Close the bar."""
        self.progress.finish()

    def note(self, line: str) -> None:
        """Show a line once, whichever workers send it."""
        if line not in self.noted:
            self.noted.add(line)
            self.progress.note(line)


@contextmanager
def quiet(cluster: ClusterConfig) -> Iterator[None]:
    """Turn off Ray Data's bars, and without `--verbose` its console lines and the core's; its log files stay."""
    context = importlib.import_module("ray.data").DataContext.get_current()
    consoles = console_handlers("ray.data")
    before = context.enable_progress_bars, [handler.level for handler in consoles]
    context.enable_progress_bars = False  # prlhf has its own
    for handler in consoles:
        handler.setLevel(handler.level if cluster.verbose else logging.CRITICAL)
    try:
        with nullcontext() if cluster.verbose else without_core_lines():
            yield
    finally:
        context.enable_progress_bars = before[0]
        for handler, level in zip(consoles, before[1], strict=True):
            handler.setLevel(level)


def console_handlers(logger: str) -> list[logging.Handler]:
    """The handlers of `logger` that write to the terminal, and not to a file."""
    streams = (h for h in logging.getLogger(logger).handlers if isinstance(h, logging.StreamHandler))
    return [handler for handler in streams if not isinstance(handler, logging.FileHandler)]


@contextmanager
def without_core_lines() -> Iterator[None]:
    """Keep log lines of Ray's C++ core off the terminal: it writes one for every actor that may be started again.

    The core writes to file descriptor 2, not to `sys.stderr`, so that descriptor leads through a pipe, from which
    everything but such lines goes on. `sys.stderr` keeps the terminal. Where descriptors cannot be replaced, nothing is
    kept off.
    """
    try:
        saved, (source, pipe) = os.dup(2), os.pipe()
    except OSError:
        yield
        return
    with stderr_of_python(saved):
        os.dup2(pipe, 2)
        os.close(pipe)
        passing = threading.Thread(target=pass_on, args=(source, saved), daemon=True)
        passing.start()
        try:
            yield
        finally:
            os.dup2(saved, 2)  # closes the pipe's end, which ends the thread
            passing.join(timeout=1.0)
            if not passing.is_alive():  # a child process may hold the pipe too
                os.close(saved)


@contextmanager
def stderr_of_python(descriptor: int) -> Iterator[None]:
    """Let `sys.stderr` write to a copy of `descriptor`, if it writes to descriptor 2."""
    python = sys.stderr
    try:
        ours = python.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a notebook's, or a test's
        ours = False
    if ours:
        copy = os.dup(descriptor)
        sys.stderr = os.fdopen(copy, "w", buffering=1, encoding=python.encoding, errors="backslashreplace")
    try:
        yield
    finally:
        if ours:
            sys.stderr.close()
            sys.stderr = python


def pass_on(source: int, target: int) -> None:
    """Copy `source` to `target`, both file descriptors, except for log lines of Ray's core."""
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if not CORE_LINE.match(line):
                os.write(target, line)
