"""Kill the whole process group of a stage, continue, and compare."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

from benchmarks.faults.outcome import differences, left_in
from benchmarks.faults.stages import Stage

MARK = "PRLHF_FAULTS"  # a variable of all processes of a stage
LIMIT = 300.0  # seconds for a command to end
GONE = 40.0  # seconds for child processes to notice the kill
NOTHING_TO_RESUME = ("holds no run to resume", "holds no sweep to resume", "no recipe at")
ONCE_MORE = 0.25  # share of continued commands that are killed again


@dataclass(frozen=True)
class Whole:
    """An undisturbed stage: its result, and the seconds at which it began and ended its work in the folder."""

    left: dict[str, Any]
    first: float
    seconds: float


@dataclass(frozen=True)
class Kill:
    stage: str
    number: int
    after: list[float]  # seconds, of each kill
    where: str  # files at that time
    wrong: list[str]  # empty: equal, with nothing left


class Failed(Exception):
    """A command failed that should have succeeded."""


def undisturbed(stage: Stage, root: Path) -> Whole:
    """Run a stage to its end, and observe when it starts to write."""
    work = _folder(stage, root, "whole")
    before = _names(work)
    began = time.monotonic()
    process = _start(stage.line, work)
    first = None
    while process.poll() is None:
        if first is None and _names(work) != before:
            first = time.monotonic() - began
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if process.returncode:
        raise Failed(f"{stage.name}: {(work.parent / 'said.txt').read_text()[-2000:]}")
    return Whole(left_in(work, stage.but), first or seconds, seconds)


def kill(stage: Stage, number: int, whole: Whole, seed: int, root: Path) -> Kill:
    """Kill a stage once or twice; returns the outcome."""
    rng = Random(f"{seed} {stage.name} {number}")
    work = _folder(stage, root, f"kill-{number}")
    after, where = [_disturb(stage.line, work, whole, rng)], _described(work)
    if rng.random() < ONCE_MORE:
        after.append(_disturb(_next(stage, work), work, whole, rng))
        where += f"; then {_described(work)}"
    wrong = [f"process left: {name}" for name in _still_there(work)]
    try:
        _go_on(stage, work)
        wrong += differences(left_in(work, stage.but), whole.left, stage.within)
    except Failed as error:
        wrong.append(str(error))
    wrong += [f"process left at the end: {name}" for name in _still_there(work)]
    if not wrong:
        shutil.rmtree(work.parent)
    return Kill(stage.name, number, after, where, wrong)


def _folder(stage: Stage, root: Path, name: str) -> Path:
    """The folder in which a command runs; the cache is next to it."""
    work = root / stage.name.replace(" ", "-").replace(",", "") / name / "work"
    work.mkdir(parents=True)
    for good in stage.before:
        shutil.copytree(root / good, work / good)
    return work


def _start(line: list[str], work: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {MARK: str(work), "PRLHF_CACHE": str(work.parent / "cache")}
    with (work.parent / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "prlhf_cli.main", *line],
            cwd=work, env=environment, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def _disturb(line: list[str], work: Path, whole: Whole, rng: Random) -> float:
    """Start and kill: one time in five at any time, otherwise while it works in its folder."""
    began = whole.first - 0.3 if rng.random() < 0.8 else 0.0
    seconds = rng.uniform(max(0.05, began), whole.seconds)
    process = _start(line, work)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return seconds


def _next(stage: Stage, work: Path) -> list[str]:
    """The command to continue with; for a stage with a separate one, there may be nothing to continue yet."""
    there = any(path.name == "recipe.yaml" for path in work.glob("*/recipe.yaml"))
    return stage.again if stage.again and there else stage.line


def _go_on(stage: Stage, work: Path) -> None:
    for line in (stage.again or stage.line, stage.line):
        process = _start(line, work)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Failed(f"it did not end within {LIMIT:.0f} seconds") from None
        said = (work.parent / "said.txt").read_text(errors="replace").rstrip().rsplit("\n", 1)[-1]
        if code == 0:
            return
        if not any(text in said for text in NOTHING_TO_RESUME):
            raise Failed(f"going on ended with {code}: {said[-300:]}")
    raise Failed(f"it cannot begin again: {said[-300:]}")


def _names(work: Path) -> set[str]:
    return {str(path) for path in work.rglob("*")}


def _described(work: Path) -> str:
    """A short description of the files that a kill left."""
    names = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    if not names:
        return "nothing written yet"
    telling = [name for name in names if name.endswith((".partial", ".old")) or "checkpoint-" in name.split("/")[-2:-1]]
    told = sorted({"/".join(name.split("/")[:3]) for name in telling})[-2:]
    return f"{len(names)} files" + (f", {', '.join(told)}" if told else "")


def _still_there(work: Path) -> list[str]:
    """Processes that a command started and that have not ended in time."""
    deadline = time.monotonic() + GONE
    while found := _marked(work):
        if time.monotonic() > deadline:
            for process in found:
                process.kill()
            return [f"{process.pid}" for process in found]
        time.sleep(0.1)
    return []


def _marked(work: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(work) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
