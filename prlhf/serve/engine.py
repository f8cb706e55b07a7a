"""The engine: one thread that writes the responses of all requests, as many at a time as there are slots.

Requests join and leave while others are written. Everything of the model is touched by this thread alone.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prlhf.config import GenerateConfig, ServeConfig
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow
from prlhf.generate.decoding import turn_end
from prlhf.generate.prefixes import KeptBeginnings
from prlhf.generate.sampling import Sampling, TokenScore
from prlhf.generate.text_stream import TextStream
from prlhf.model.checkpoint import Policy
from prlhf.serve.roster import ServedUser
from prlhf.serve.seats import Seats

LOG = logging.getLogger("prlhf.serve")


class Full(Exception):
    """The queue has no room for a request."""


class Closed(Exception):
    """The engine takes no further requests."""


@dataclass(frozen=True)
class WrittenPiece:
    """More of a response. `finish`: `stop`, `length` or `error` with its last piece, whose `tokens` counts them all."""

    text: str
    scored: list[tuple[int, TokenScore]] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0
    reused: int = 0  # with its last piece: tokens of the prompt that were read before


@dataclass(eq=False)
class Job:
    """One response to write. `deliver` is called in the engine's thread with each piece of it."""

    ids: Sequence[int]
    person: ServedUser
    seed: int
    room: int
    sampling: Sampling
    stops: Sequence[str]
    top: int | None
    deliver: Callable[[WrittenPiece], None]
    text: TextStream | None = None
    row: DecodeRow | None = None  # while it is written


class ServingEngine:
    """Writes jobs with `policy`, whose user model it takes over."""

    def __init__(self, policy: Policy, config: ServeConfig) -> None:
        self.policy, self._config = policy, config
        self._tokenizer = copy.deepcopy(policy.tokenizer)  # others encode while this thread decodes
        self._end = turn_end(policy, GenerateConfig(template_options=config.template_options))
        self._seats = Seats(policy.model.users, config.batch_size)
        self._kept = KeptBeginnings(config.prefix_cache << 20)
        self._loop = self._new_loop()
        self._queue: deque[Job] = deque()
        self._dropped: set[Job] = set()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prlhf-engine", daemon=True)
        self._thread.start()

    # ---- called from other threads ----

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of `jobs`, or none. Raises Full or Closed."""
        with self._changed:
            if self._closing:
                raise Closed
            free = self._config.batch_size - len(self._loop.active)
            if len(self._queue) + len(jobs) > self._config.queue + max(free, 0):
                raise Full
            self._queue.extend(jobs)
            self._changed.notify()

    def drop(self, jobs: Sequence[Job]) -> None:
        """Stop writing `jobs`, whose reader has gone; those that have ended stay as they are."""
        with self._changed:
            gone = set(jobs)
            self._queue = deque(job for job in self._queue if job not in gone)
            self._dropped |= {job for job in jobs if job.row is not None}
            self._changed.notify()

    def close(self) -> None:
        """Finish all that was submitted, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many responses wait."""
        return len(self._queue)

    @property
    def writing(self) -> int:
        """How many responses are being written."""
        return len(self._loop.active)

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._loop.active or self._closing):
                    self._changed.wait()
                if not (self._queue or self._loop.active):
                    return
                free = self._config.batch_size - len(self._loop.active)
                fresh = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
                for job in fresh:
                    job.row = self._row(job)
                gone, self._dropped = self._dropped, set()
            try:
                self._turn(fresh, gone)
            except Exception:  # whatever happens to these responses, the server goes on
                LOG.exception("responses failed")
                self._fail(fresh)

    def _turn(self, fresh: Sequence[Job], gone: set[Job]) -> None:
        """Let rows join and leave, and give every row one more token."""
        leaving = [job for job in gone if job.row in self._loop.active]
        self._loop.drop([job.row for job in leaving if job.row])
        for job in leaving:
            self._leave(job)
        if fresh:
            self._loop.join([job.row for job in fresh if job.row])
        for row in self._loop.step() if self._loop.active else []:
            job = row.tag
            self._leave(job)
            text = job.text
            finish = "stop" if text.finished else "length"
            _send(job, WrittenPiece(text.rest(), finish=finish, tokens=text.tokens, reused=row.reused))
        if not self._loop.active:
            self._loop = self._new_loop()  # the cache of an idle server is given back

    def _row(self, job: Job) -> DecodeRow:
        job.text = TextStream(self._tokenizer, self._end, job.stops)
        seat = None if self.policy.model.users.idle else self._seats.take(job.person)
        # a seat is taken by others later: what was computed is known by the numbers that it was computed from
        who = job.person.digest if seat else None
        return DecodeRow(job.ids, seat, job.seed, job, job.room, job.sampling, job.top, who)

    def _ended(self, row: DecodeRow) -> bool:
        """Send what the newest token adds to a response; returns whether it was the last."""
        job, token = row.tag, row.written[-1]
        text = job.text.push(token)
        scored = [(token, row.scores[-1])] if row.scores and token not in self._end.ids else []
        if text or scored:
            _send(job, WrittenPiece(text, scored))
        return bool(job.text.finished)

    def _leave(self, job: Job) -> None:
        job.row = None
        if not self.policy.model.users.idle:
            self._seats.leave(job.person)

    def _fail(self, fresh: Sequence[Job]) -> None:
        jobs = {*fresh, *(row.tag for row in self._loop.active)}
        self._loop = self._new_loop()
        for job in jobs:
            if job.row is not None:
                self._leave(job)
                _send(job, WrittenPiece("", finish="error"))

    def _new_loop(self) -> DecodeLoop:
        size, room = self._config.batch_size, self._config.max_tokens
        return DecodeLoop(self.policy.model, size, room, self._ended, kept=self._kept)


def _send(job: Job, piece: WrittenPiece) -> None:
    with suppress(RuntimeError):  # the reader's event loop is closed
        job.deliver(piece)
