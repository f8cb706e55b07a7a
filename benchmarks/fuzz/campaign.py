"""Many cases of every kind, each kind in a separate process, so that a crash is a fault like any other."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzz.cases import SECONDS, Case, Outcome, run

Send = Callable[[Any], None]


class Broken(Exception):
    """A case could not be made: the fault is in the fuzzer."""


def one(kind: str, number: int, seed: int, material: Any, work: Path) -> Outcome:
    """Make a case of a kind in KINDS, and run it."""
    from benchmarks.fuzz.kinds import KINDS

    work.mkdir(parents=True)
    try:
        case = KINDS[kind][1](Random(f"{seed} {kind} {number}"), work, material)
    except Exception as error:
        raise Broken(f"{kind} {number}: {traceback.format_exc()}") from error
    return run(kind, number, case)


def outcomes(kind: str, count: int, seed: int, material: Any) -> Iterator[Outcome]:
    """Yield all outcomes of a kind. A process that dies or hangs is replaced, and its current case fails."""
    from benchmarks.fuzz.kinds import DRAWN

    work = drawn if kind in DRAWN else listed
    first = 0
    while first < count:
        for told in _in_child(work, (kind, first, count, seed, material)):
            if isinstance(told, str):
                yield Outcome(kind, first, "", "fault", told)
                first = count if kind in DRAWN else first + 1
                break
            yield told
            first = told.number + 1
        else:
            return


def listed(kind: str, first: int, count: int, seed: int, material: Any, send: Send) -> None:
    with tempfile.TemporaryDirectory(prefix="prlhf-fuzz-") as place:
        for number in range(first, count):
            work = Path(place) / str(number)
            send(one(kind, number, seed, material, work))
            shutil.rmtree(work, ignore_errors=True)


def drawn(kind: str, first: int, count: int, seed: int, material: Any, send: Send) -> None:
    """Draw cases with hypothesis, without shrinking its examples."""
    import hypothesis
    from hypothesis import strategies as st

    from benchmarks.fuzz.kinds import DRAWN

    numbers = iter(range(first, count))

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count - first,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.data())
    def draw(data: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="prlhf-fuzz-") as place:
            case: Case = DRAWN[kind][1](data.draw, Path(place), material)
            send(run(kind, next(numbers), case))

    draw()


def _in_child(work: Callable[..., None], args: tuple[Any, ...]) -> Iterator[Outcome | str]:
    """Yield what a forked process sends; at the end a text, if it died or had to be killed."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(work, args, theirs)
    theirs.close()
    said = ""
    try:
        while True:
            if not ours.poll(SECONDS * 3):
                os.kill(pid, 9)
                said = f"hang: nothing for {SECONDS * 3:.0f} seconds"
                break
            told = ours.recv()
            if told is None:
                break
            if isinstance(told, Broken):
                raise told
            yield told
    except EOFError:
        said = "the process died"
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if said:
        yield f"{said} (exit code {status})"


def _child(work: Callable[..., None], args: tuple[Any, ...], pipe: Any) -> None:
    """Work silently, and end without the parent's clean-up."""
    code = 1
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            work(*args, pipe.send)
        pipe.send(None)
        code = 0
    except BaseException as error:
        pipe.send(error if isinstance(error, Broken) else Broken(traceback.format_exc()))
    finally:
        os._exit(code)


def campaign(counts: dict[str, int], seed: int, material: Any, say: Callable[[str], None]) -> list[Outcome]:
    """Run `counts[kind]` cases of each kind; `say` gets a report of every kind at its end."""
    found: list[Outcome] = []
    for kind, count in counts.items():
        began = time.perf_counter()
        mine = list(outcomes(kind, count, seed, material))
        say(row(kind, mine, time.perf_counter() - began))
        found += mine
    return found


HEAD = f"| {'kind':<20} | {'cases':>6} | {'refused':>7} | {'accepted':>8} | {'faults':>6} | {'seconds':>7} |"
RULE = "|---|--:|--:|--:|--:|--:|"


def row(name: str, outcomes: list[Outcome], seconds: float) -> str:
    counts = {verdict: sum(one.verdict == verdict for one in outcomes) for verdict in ("refused", "accepted", "fault")}
    return (
        f"| {name:<20} | {len(outcomes):>6} | {counts['refused']:>7} | {counts['accepted']:>8} | {counts['fault']:>6} "
        f"| {seconds:>7.1f} |"
    )


def faults(outcomes: list[Outcome]) -> list[str]:
    """Return a line per cause, with its number and a case that repeats it."""
    by_cause: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.verdict == "fault":
            by_cause.setdefault(f"{outcome.kind}: {outcome.cause}", []).append(outcome)
    ranked = sorted(by_cause.items(), key=lambda item: -len(item[1]))
    return [
        f"{len(mine):>5} x {cause}\n        e.g. {mine[0].number}: {mine[0].about[:160]}\n        {mine[0].line[:200]}"
        for cause, mine in ranked
    ]
