"""One case: bad input, the call that reads it, and the outcome."""

from __future__ import annotations

import hashlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prlhf.errors import Interrupted, PrlhfError

SECONDS = 20.0  # limit for a case
LEFTOVERS = (".partial", ".old", ".tmp")  # of unfinished writes

Verdict = Literal["refused", "accepted", "fault"]
Snapshot = dict[str, str | None]


class Hang(BaseException):
    """A case took longer than `SECONDS`."""


class Wrong(Exception):
    """A call returned, but its result or a file that it wrote is not complete."""


@dataclass(frozen=True)
class Case:
    """`call` reads the damaged input. `inputs` must not change; `outs` may change only if the call succeeds."""

    about: str
    call: Callable[[], Any]
    inputs: Sequence[Path] = ()
    outs: Sequence[Path] = ()
    check: Callable[[Any], Any] = field(default=lambda result: None)  # checks the result; raises Wrong, or anything


@dataclass(frozen=True)
class Outcome:
    kind: str
    number: int
    about: str
    verdict: Verdict
    line: str = ""  # the message
    trace: str = ""
    seconds: float = 0.0

    @property
    def cause(self) -> str:
        """Return the part that outcomes of the same fault share: the error, and the innermost line of prlhf."""
        ours = [line.strip() for line in self.trace.splitlines() if "/prlhf/" in line or "/prlhf_cli/" in line]
        where = ours[-1].partition("prlhf")[2] if ours else ""
        return f"{self.line[:60]} @ {where.split(', in')[0]}"


def run(kind: str, number: int, case: Case) -> Outcome:
    """Run a case and return its outcome."""
    before = snapshot(case.inputs), snapshot(case.outs)
    began = time.perf_counter()
    verdict, line, trace = _judged(case, before)
    return Outcome(kind, number, case.about, verdict, line, trace, time.perf_counter() - began)


def _judged(case: Case, before: tuple[Snapshot, Snapshot]) -> tuple[Verdict, str, str]:
    refused = ""
    try:
        with alarm(SECONDS):
            result = case.call()
            case.check(result)
    except (PrlhfError, Interrupted) as error:
        refused = str(error)
    except Hang:
        return "fault", f"hang: over {SECONDS:.0f} seconds", traceback.format_exc()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        return "fault", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", traceback.format_exc()
    if snapshot(case.inputs) != before[0]:
        return "fault", f"an input was changed; said: {refused or 'nothing'}", ""
    after = snapshot(case.outs)
    if refused and after != before[1]:
        changed = sorted(name for name in {*after, *before[1]} if after.get(name, ...) != before[1].get(name, ...))
        return "fault", f"refused, and {', '.join(changed)[:200]} changed: {refused[:200]}", ""
    if left := [name for name in after if name.endswith(LEFTOVERS) and name not in before[1]]:
        return "fault", f"left behind: {', '.join(left)[:200]}", ""
    if refused:
        return ("refused", refused, "") if "\n" not in refused else ("fault", f"several lines: {refused!r:.200}", "")
    return "accepted", "", ""


def snapshot(places: Sequence[Path]) -> Snapshot:
    """Return every path in and below `places` with a hash of its content; links are listed and not followed."""
    found: Snapshot = {}
    for place in places:
        for path in (place, *(sorted(place.rglob("*")) if place.is_dir() and not place.is_symlink() else ())):
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            elif path.is_file():
                found[str(path)] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            elif path.exists():
                found[str(path)] = None
    return found


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise Hang in this thread after `seconds`. If C code hangs, the campaign kills the process."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
