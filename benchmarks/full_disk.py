"""Commands on a disk that fills up at a random byte: each is continued and compared with an undisturbed one.

    python -m benchmarks.full_disk --cases 40 --seed 1
    python -m benchmarks.full_disk --only 'generate*' --cases 5

A stage is a command of prlhf on small data, as in benchmarks/faults; some start with older output of the same kind.
It first runs undisturbed. Then it runs many times in new folders, where no file may grow beyond a random size, drawn
uniformly below the size of the largest file that it writes (RLIMIT_FSIZE: the system reports EFBIG, as it reports
ENOSPC when a disk is full). Each run must end with exit code 2, one `error:` line and no traceback; older files must be
unchanged, byte for byte; no partial file may be left; and the same command without the limit must then leave what the
undisturbed one left.
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

from benchmarks.faults import __main__ as faults  # to find the data, base and server of the tests

HEAVY = ["torch", "transformers", "peft", "prlhf.train.run", "prlhf.generate.run", "prlhf.judge.run", "prlhf_cli.main"]
LIMIT = 300.0  # seconds for a command to end
GROWING = ("*metrics.jsonl", "*.jsonl.partial", "*/checkpoints/*")  # files that a continued command reads
FRESH: Callable[[Path], None] = Path.mkdir


@dataclass(frozen=True)
class Full:
    """A command, the files where it runs, and how it is continued after a failure."""

    name: str
    cases: int  # out of 40
    line: list[str]
    again: list[str] = field(default_factory=list)  # default: the same line
    begin: Callable[[Path], None] = FRESH  # makes the folder that it starts in
    but: tuple[str, ...] = ()  # files that are not compared, as they hold times


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
    wrong: list[str]  # empty: one line, nothing lost, and equal at the end


def main(count: int = 40, seed: int = 1, only: Sequence[str] = ("*",), keep: Path | None = None) -> int:
    """Run `count` cases per stage and print a row per stage; returns the number of faults."""
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
    """The stages of benchmarks/faults that run in one process, small, and the same with older output."""
    from benchmarks.faults.stages import make

    known = {stage.name: stage for stage in make(root, url)}
    rows = (root / "mine.jsonl").read_text().splitlines(keepends=True)
    (root / "mine.jsonl").write_text("".join(rows[:2000]))
    prep, train = known["prep"].line, [*known["train"].line, "--set", "max_steps=30"]
    file, shards = known["generate, a file"].line, known["generate, shards"].line
    checkpoint, llm = known["judge --checkpoint"].line, known["judge by an LLM"]
    rules = ["judge", str(root / "a.jsonl"), str(root / "b.jsonl"), "--judge", "rule:shorter", "--out", "judged"]

    def lies(*lines: list[str], without: str = "") -> Callable[[Path], None]:
        """A folder where earlier commands ran, with the files that match `without` removed."""

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
        Full("prep, with older data", 4, prep, begin=lies([*prep, "--seed", "9"])),
        Full("train", 7, train, resume),
        Full("train --resume", 4, resume, resume, half_trained),
        Full("generate, a file", 3, file),
        Full("generate, a file, with older rows", 3, file, begin=lies([*file, "--max-prompts", "2"])),
        Full("generate, shards", 3, shards),
        Full("generate, shards, half there", 3, shards, begin=lies(shards, without="*-0000[1-9].*")),
        Full("judge by a rule, with an older one", 3, rules, begin=lies([*rules, "--seed", "9"]), but=report),
        Full("judge by an LLM", 2, llm.line, but=report),
        Full("judge --checkpoint", 3, checkpoint, but=report),
    ]


def _interrupted(line: list[str], work: Path) -> None:
    """Train until there is a checkpoint, and kill the process."""
    process, reader = _start(line, work, None)
    while not any(work.glob("run/checkpoints/*/sha256.json")) and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    reader.close()


# ---- one case ----


def undisturbed(full: Full, root: Path) -> Undisturbed:
    """Run a stage to its end, and observe the sizes of its files."""
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
    """Run a stage with a limit that it meets, check the folder, continue, and compare."""
    rng = Random(f"{seed} {full.name} {number}")
    start = root / "starts" / full.name
    code = 0
    while code == 0:  # the limit was larger than all files of this run
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
    """An older file that is missing or changed; for a run to continue, a reason why it cannot be continued."""
    from prlhf.train.checkpoints import newest_checkpoint

    old = {name for name in _names(start) if (start / name).is_file() and not any(fnmatch(name, g) for g in GROWING)}
    bytes_of = {name: (work / name).read_bytes() if (work / name).is_file() else None for name in old}
    wrong = [f"lost: {name}" for name in sorted(old) if bytes_of[name] != (start / name).read_bytes()]
    if newest_checkpoint(start / "run") and not newest_checkpoint(work / "run"):
        wrong.append("lost: the last whole checkpoint")
    return wrong


def _half_written(whole: Undisturbed, start: Path, work: Path) -> list[str]:
    """A new file that belongs neither to the result nor to a continued command, or a changed part of the result."""
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
    """The folder in which a command runs; the cache is next to it."""
    work = root / "full" / full.name / name / "work"
    shutil.rmtree(work.parent, ignore_errors=True)
    work.parent.mkdir(parents=True)
    shutil.copytree(root / "starts" / full.name, work)
    return work


def command(line: list[str], work: Path, limit: int | None = None) -> tuple[int, str]:
    """Run `prlhf LINE` in `work` with the file size `limit` in bytes; returns its exit code and output."""
    process, reader = _start(line, work, limit)
    said = b""
    while part := os.read(reader.fileno(), 2**16):
        said += part
    process.join(LIMIT)
    reader.close()
    return (process.exitcode if process.exitcode is not None else -1), said.decode(errors="replace")


def _start(line: list[str], work: Path, limit: int | None) -> tuple[Any, Connection]:
    """Fork a process from one that has imported the libraries, which is most of the time of a small command."""
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
    except OSError:  # it has been renamed
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
