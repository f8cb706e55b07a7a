"""The cost of Ray: start-up, workers compared with threads, and a lost worker. Run it on an idle machine.

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
from pathlib import Path
from typing import Any

import psutil

STEPS, BATCH = 60, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dataset", default="demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prlhf-ray-") as folder:
        work = Path(folder)
        timed(work / "warm", args.dataset, threads=2)  # data, caches
        kinds: dict[str, Any] = {
            "in process, two threads": {"threads": 2},
            "one worker of two threads": {"threads": 2, "workers": 1},
            "two workers of one thread": {"threads": 1, "workers": 2},
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for repeat in range(args.repeats):
            for number, (name, kind) in enumerate(kinds.items()):
                found[name].append(timed(work / f"{number}-{repeat}", args.dataset, **kind))
                print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.1f} comparisons/s", flush=True)
        lost = [kill_cost(work / f"kill-{repeat}", args.dataset) for repeat in range(args.repeats)]
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    alone, one, two = medians.values()
    undisturbed = two[0]
    summary = {
        "wall_seconds": {name: round(row[0], 1) for name, row in medians.items()},
        "comparisons_per_second": {name: round(row[1], 1) for name, row in medians.items()},
        "start_up_of_one_worker_seconds": round(one[0] - alone[0], 1),
        "two_workers_over_two_threads": round(two[1] / alone[1], 2),
        "seconds_lost_to_a_killed_worker": round(statistics.median(lost) - undisturbed, 1),
    }
    print(json.dumps(summary, indent=1))


def command(out: Path, dataset: str, workers: int = 0, threads: int = 2) -> list[str]:
    line = [sys.executable, "-m", "prlhf_cli.main", "train", "--dataset", dataset, "--out", str(out), "--json"]
    line += ["--max-steps", str(STEPS), "--batch-size", str(BATCH), "--save-every", "10", "--set", "eval_limit=20"]
    each = ["--cpus-per-worker", str(threads)] if workers else []
    return [*line, *(["--workers", str(workers)] if workers else []), *each]


def started(line: list[str], threads: int) -> subprocess.Popen[str]:
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=settings)


def timed(out: Path, dataset: str, workers: int = 0, threads: int = 2) -> tuple[float, float]:
    """Return the wall seconds of a command, and its comparisons per second from the first step."""
    began = time.perf_counter()
    process = started(command(out, dataset, workers, threads), threads)
    printed, _ = process.communicate()
    seconds = time.perf_counter() - began
    return seconds, json.loads(printed.splitlines()[-1])["comparisons_per_second"]


def kill_cost(out: Path, dataset: str) -> float:
    """Return the wall seconds of a run of two workers, if one is killed after the checkpoint of half the steps."""
    began = time.perf_counter()
    process = started(command(out, dataset, 2, 1), 1)
    while not any(path.name.endswith(f"-{STEPS // 2}") for path in (out / "checkpoints").glob("checkpoint-*")):
        time.sleep(0.05)
    names = ((one, " ".join(one.info["cmdline"] or [])) for one in psutil.process_iter(["cmdline"]))
    next(one for one, name in names if "RayTrainWorker" in name).send_signal(signal.SIGKILL)
    process.communicate()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
