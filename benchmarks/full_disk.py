"""Commands on a disk that fills up at a random byte, gone on with, and compared with the same command left in peace.

    python -m benchmarks.full_disk --cases 40 --seed 1
    python -m benchmarks.full_disk --only 'generate*' --cases 5

A stage is a command of prlhf on small data, as in benchmarks/faults; some begin beside older output of the same kind.
It is run once undisturbed; then again and again in folders of its own, where no file may grow beyond a size drawn
evenly from all below that of the largest file it writes (RLIMIT_FSIZE: the system answers EFBIG, as it answers ENOSPC
where a disk is full). Demanded of each: exit code 2, one `error:` line and no traceback; what lay there is there byte
for byte; nothing half-written is left; and the command that goes on, without the limit, leaves what the undisturbed one
left.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults import __main__ as faults  # which finds the tests' data, base and server

HEAVY = ["torch", "transformers", "peft", "prlhf.train.run", "prlhf.generate.run", "prlhf.judge.run", "prlhf_cli.main"]
LIMIT = 300.0  # seconds for a command to end
GROWING = ("*metrics.jsonl", "*.jsonl.partial", "*/checkpoints/*")  # what a command goes on with
FRESH: Callable[[Path], None] = Path.mkdir


@dataclass(frozen=True)
class Full:
    """A command, what lies where it runs, and how it goes on once it has begun."""

    name: str
    cases: int  # out of 40
    line: list[str]
    again: list[str] = field(default_factory=list)  # default: the same line
    begin: Callable[[Path], None] = FRESH  # makes the folder that it starts in
    but: tuple[str, ...] = ()  # files that are not compared: they tell times


@dataclass(frozen=True)
class Undisturbed:
    left: dict[str, Any]
    names: set[str]
    largest: int  # bytes


@dataclass(frozen=True)
class Case:
    number: int
    limit: int  # bytes
    said: str
    wrong: list[str]  # empty: one line, nothing lost, and equal afterwards


def main(count: int = 40, seed: int = 1, only: Sequence[str] = ("*",), keep: Path | None = None) -> int:
    """Run `count` cases and print a row per stage; returns how many were wrong."""
    with tempfile.TemporaryDirectory(prefix="prlhf-full-") as scratch, faults.server() as url:
        root = (keep or Path(scratch)).resolve()
        chosen = [full for full in stages(root, url) if any(fnmatch(full.name, one) for one in only)]
        whole = sum(full.cases for full in chosen)
        print("| stage | cases | one line | equal afterwards | largest file | limits, bytes |", flush=True)
        print("|---|--:|--:|--:|--:|---|", flush=True)
        return sum(_row(full, max(1, round(count * full.cases / whole)), seed, root) for full in chosen)


def _row(full: Full, count: int, seed: int, root: Path) -> int:
    whole = undisturbed(full, root)
    found = [fill(full, number, whole, seed, root) for number in range(count)]
    one_line = sum(not any(line.startswith("said") for line in case.wrong) for case in found)
    equal = sum(not case.wrong for case in found)
    limits = ", ".join(str(case.limit) for case in found)
    print(f"| {full.name} | {count} | {one_line} | {equal} | {whole.largest} | {limits} |", flush=True)
    for case in found:
        for line in case.wrong[:8]:
            print(f"    {full.name} {case.number}, {case.limit} bytes: {line}", flush=True)
    return count - equal


# ---- the commands ----


def stages(root: Path, url: str) -> list[Full]:
    """Those of benchmarks/faults that run in one process, small; and the same beside older output."""
    from benchmarks.faults.stages import make

    known = {stage.name: stage for stage in make(root, url)}
    rows = (root / "mine.jsonl").read_text().splitlines(keepends=True)
    (root / "mine.jsonl").write_text("".join(rows[:2000]))
    prep, train = known["prep"].line, [*known["train"].line, "--set", "max_steps=30"]
    file, shards = known["generate, a file"].line, known["generate, shards"].line
    checkpoint, llm = known["judge --checkpoint"].line, known["judge by an LLM"]
    rules = ["judge", str(root / "a.jsonl"), str(root / "b.jsonl"), "--judge", "rule:shorter", "--out", "judged"]

    def lies(*lines: list[str], without: str = "") -> Callable[[Path], None]:
        """Where earlier commands were run, and lost files that fit `without`."""

        def begin(work: Path) -> None:
            work.mkdir()
            for line in lines:
                code, said = command(line, work)
                if code:
                    raise RuntimeError(f"{line}: {said[-2000:]}")
            for path in sorted(work.rglob(without)) if without else []:
                path.unlink()

        return begin

    def half_trained(work: Path) -> None:
        work.mkdir()
        _interrupted(train, work)

    resume = known["train"].again
    report = ("*report.html",)
    return [
        Full("prep", 5, prep),
        Full("prep, beside older data", 4, prep, begin=lies([*prep, "--seed", "9"])),
        Full("train", 7, train, resume),
        Full("train --resume", 4, resume, resume, half_trained),
        Full("generate, a file", 3, file),
        Full("generate, a file, beside older rows", 3, file, begin=lies([*file, "--max-prompts", "2"])),
        Full("generate, shards", 3, shards),
        Full("generate, shards, half there", 3, shards, begin=lies(shards, without="*-0000[1-9].*")),
        Full("judge by a rule, beside an older one", 3, rules, begin=lies([*rules, "--seed", "9"]), but=report),
        Full("judge by an LLM", 2, llm.line, but=report),
        Full("judge --checkpoint", 3, checkpoint, but=report),
    ]


def _interrupted(line: list[str], work: Path) -> None:
    """Train until something stands in the checkpoints, and kill."""
    process, reader = _start(line, work, None)
    while not any(work.glob("run/checkpoints/*/sha256.json")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    reader.close()


# ---- one case ----


def undisturbed(full: Full, root: Path) -> Undisturbed:
    """Run a stage to its end, and watch how large its files become."""
    start = root / "starts" / full.name
    start.parent.mkdir(exist_ok=True)
    full.begin(start)
    work = _folder(full, root, "whole")
    watched, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            watched.append(_largest(work))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code, said = command(full.line, work)
    over.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{full.name}: {said[-2000:]}")
    return Undisturbed(_left_in(work, full.but), _names(work), max(*watched, _largest(work)))


def fill(full: Full, number: int, whole: Undisturbed, seed: int, root: Path) -> Case:
    """Run a stage with a limit that it meets, look, go on, and compare."""
    rng = Random(f"{seed} {full.name} {number}")
    start = root / "starts" / full.name
    code = 0
    while code == 0:  # what was drawn was more than was written this time
        limit = rng.randrange(1, whole.largest)
        work = _folder(full, root, f"case-{number}")
        code, said = command(full.line, work, limit)
    wrong = [f"said, with code {code}: {said[-600:]!r}"] if not _one_line(code, said) else []
    wrong += _lost(start, work) + _half_written(whole, start, work)
    if not wrong:
        code, again = command(full.again if full.again and "--resume" in said else full.line, work)
        if code:
            wrong.append(f"going on ended with {code}: {again[-600:]!r} after {said[-300:]!r}")
        else:
            wrong += _differences(_left_in(work, full.but), whole.left)
    if not wrong:
        shutil.rmtree(work.parent)
    return Case(number, limit, said, wrong)


def _one_line(code: int, said: str) -> bool:
    plain = re.sub(r"\x1b\[\d*m", "", said)
    return code == 2 and len(re.findall(r"^error: ", plain, re.MULTILINE)) == 1 and "Traceback" not in plain


def _lost(start: Path, work: Path) -> list[str]:
    """What lay there and is not there any more as it was; of a run that goes on, that it cannot."""
    from prlhf.train.checkpoints import newest_checkpoint

    old = {name for name in _names(start) if (start / name).is_file() and not any(fnmatch(name, g) for g in GROWING)}
    bytes_of = {name: (work / name).read_bytes() if (work / name).is_file() else None for name in old}
    wrong = [f"lost: {name}" for name in sorted(old) if bytes_of[name] != (start / name).read_bytes()]
    if newest_checkpoint(start / "run") and not newest_checkpoint(work / "run"):
        wrong.append("lost: the last whole checkpoint")
    return wrong


def _half_written(whole: Undisturbed, start: Path, work: Path) -> list[str]:
    """What is new, and neither of the result nor what a command goes on with; or is of the result, and not as there."""
    new = _names(work) - _names(start)
    wrong = [f"left over: {name}" for name in sorted(new - whole.names) if not _goes_on(name)]
    wrong += [f"empty: {name}" for name in sorted(new) if (work / name).is_dir() and not any((work / name).iterdir())]
    wrong += [f"no seal: {path.name}" for path in work.glob("*/checkpoints/*") if not (path / "sha256.json").exists()]
    there = {name: value for name, value in _left_in(work).items() if name in new and not _goes_on(name)}
    return wrong + _differences(there, {name: value for name, value in whole.left.items() if name in there})


def _goes_on(name: str) -> bool:
    return name.endswith("/checkpoints") or any(fnmatch(name, pattern) for pattern in GROWING)


# ---- folders and processes ----


def _folder(full: Full, root: Path, name: str) -> Path:
    """Where a command runs; the cache is beside it."""
    work = root / "full" / full.name / name / "work"
    shutil.rmtree(work.parent, ignore_errors=True)
    work.parent.mkdir(parents=True)
    shutil.copytree(root / "starts" / full.name, work)
    return work


def command(line: list[str], work: Path, limit: int | None = None) -> tuple[int, str]:
    """Run `prlhf LINE` in `work`, where no file may grow beyond `limit` bytes; its exit code and what it said."""
    process, reader = _start(line, work, limit)
    said = b""
    while part := os.read(reader.fileno(), 2**16):
        said += part
    process.join(LIMIT)
    reader.close()
    return (process.exitcode if process.exitcode is not None else -1), said.decode(errors="replace")


def _start(line: list[str], work: Path, limit: int | None) -> tuple[Any, Connection]:
    """A process of its own, forked from one that has the libraries: most of a small command's time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(line, work, limit, writer), daemon=True)
    process.start()
    writer.close()
    return process, reader


def _child(line: list[str], work: Path, limit: int | None, writer: Connection) -> None:
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    writer.close()
    os.chdir(work)
    os.environ["PRLHF_CACHE"] = str(work.parent / "cache")
    from prlhf_cli.main import app

    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    app(line, prog_name="prlhf")


def _names(work: Path) -> set[str]:
    return {str(path.relative_to(work)) for path in work.rglob("*")}


def _largest(work: Path) -> int:
    try:
        return max((path.stat().st_size for path in work.rglob("*") if path.is_file()), default=0)
    except OSError:  # it was renamed meanwhile
        return 0


def _left_in(work: Path, but: Sequence[str] = ()) -> dict[str, Any]:
    from benchmarks.faults.outcome import left_in

    return left_in(work, but)


def _differences(found: Any, wanted: Any) -> list[str]:
    from benchmarks.faults.outcome import differences

    return list(differences(found, wanted))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_disk")
    parser.add_argument("--cases", type=int, default=40, help="of all stages together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", help="a stage, as in 'train*'; repeatable")
    parser.add_argument("--keep", type=Path, help="leave here what was wrong")
    given = parser.parse_args()
    sys.exit(bool(main(given.cases, given.seed, given.only or ("*",), given.keep)))
