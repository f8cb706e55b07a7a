"""The cost of Ray: start-up, workers compared with threads and in shards, and a lost worker. Run it on an idle machine.

    python -m benchmarks.ray --repeats 3

Every run is a separate command, timed from outside; it reports comparisons per second from its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

BATCH = 32
TWO = ("--workers", "2", "--cpus-per-worker", "1")
KINDS: dict[str, tuple[Any, ...]] = {  # threads, and what a command has more
    "in process, two threads": (2,),
    "one worker of two threads": (2, "--workers", "1", "--cpus-per-worker", "2"),
    "two workers of one thread": (1, *TWO),
    "two workers of one thread, in shards": (1, *TWO, "--parallel", "fsdp"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of each run, a multiple of 20")
    parser.add_argument("--kills", type=int, default=3, help="runs of which a worker is killed")
    parser.add_argument("--dataset", default="demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prlhf-ray-") as folder:
        work = Path(folder)
        command = partial(train, args.dataset, args.steps)
        timed(command(work / "warm"), 2)  # data, caches
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
        for repeat in range(args.repeats):
            for number, (name, (threads, *options)) in enumerate(KINDS.items()):
                found[name].append(timed(command(work / f"{number}-{repeat}", *options), threads))
                print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.1f} comparisons/s", flush=True)
        killed = [kill_cost(command, work / f"kill-{repeat}", args.steps // 2) for repeat in range(args.kills)]
    print(json.dumps(summary(found, killed), indent=1))


def summary(found: dict[str, list[tuple[float, float]]], killed: list[float]) -> dict[str, Any]:
    """Medians, with the least and the most, of wall seconds and comparisons per second `found` in each run."""
    wall, rate = ({name: spread([row[at] for row in rows]) for name, rows in found.items()} for at in (0, 1))
    alone, one, two, shards = KINDS
    return {
        "wall_seconds": wall,
        "comparisons_per_second": rate,
        "start_up_of_one_worker_seconds": round(wall[one][0] - wall[alone][0], 1),
        "two_workers_over_two_threads": round(rate[two][0] / rate[alone][0], 2),
        "shards_over_two_workers": round(rate[shards][0] / rate[two][0], 2),
        "seconds_lost_to_a_killed_worker": [round(seconds - wall[two][0], 1) for seconds in sorted(killed)],
    }


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(value, 1) for value in (statistics.median(values), min(values), max(values))]


def train(dataset: str, steps: int, out: Path, *options: str) -> list[str]:
    """The command of a run; checkpoints are written every tenth step."""
    line = [sys.executable, "-m", "prlhf_cli.main", "train", "--dataset", dataset, "--out", str(out), "--json"]
    line += ["--max-steps", str(steps), "--batch-size", str(BATCH), "--save-every", "10", "--set", "eval_limit=20"]
    return [*line, *options]


def started(line: list[str], threads: int) -> subprocess.Popen[str]:
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=settings)


def timed(line: list[str], threads: int) -> tuple[float, float]:
    """Return the wall seconds of a command, and its comparisons per second from the first step."""
    began = time.perf_counter()
    printed, _ = started(line, threads).communicate()
    return time.perf_counter() - began, json.loads(printed.splitlines()[-1])["comparisons_per_second"]


def kill_cost(command: Callable[..., list[str]], out: Path, after: int) -> float:
    """Return the wall seconds of a run of two workers, if one is killed after the checkpoint of step `after`."""
    began = time.perf_counter()
    threads, *options = KINDS["two workers of one thread"]
    process = started(command(out, *options), threads)
    while not any(path.name.endswith(f"-{after}") for path in (out / "checkpoints").glob("checkpoint-*")):
        time.sleep(0.05)
    names = ((one, " ".join(one.info["cmdline"] or [])) for one in psutil.process_iter(["cmdline"]))
    next(one for one, name in names if "RayTrainWorker" in name).send_signal(signal.SIGKILL)
    process.communicate()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
