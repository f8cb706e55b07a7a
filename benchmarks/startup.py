"""The time of `prlhf train` to its first optimizer step, and of `prlhf generate` to its first token.

    python -m benchmarks.startup                                # this tree
    python -m benchmarks.startup --tree ../before --tree .      # two trees in turn, so that noise affects both
    python -m benchmarks.startup --repeats 9 --json

Every run is a new process in a new folder; its files are in the page cache, from a run that is not counted. The first
step is the first line of metrics.jsonl, which has one line per step. The first token is the first line of a file of
responses that are one token long. Both are polled every 2 ms, and the process is ended then. Wall seconds count from
before the process is created; CPU seconds are user and system time of all its threads, and depend less on the load of
the machine. `train` first prepares its data, as in a first run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

EVERY = 0.002  # seconds


@dataclass(frozen=True)
class Measure:
    """A command to run, and the event to wait for.

    `command` is given to Python, with `{tree}` for the source tree. `files` is a pattern of files whose first line is
    awaited; without it, the end of the process is. `after` runs before it in the same folder and is not counted.
    """

    given: str
    until: str = ""
    after: str = ""


def _until_imported(code: str) -> Measure:
    """A program that ends at once after its imports, as a normal end takes up to a second for so many modules."""
    return Measure(f"-c '{code}; import os; os._exit(0)'")


PRLHF = "-m prlhf_cli.main"
TRAIN = f"{PRLHF} train --recipe {{tree}}/recipes/smoke.yaml --out smoke"
TRAIN_LITTLE = f"{TRAIN} --max-steps 1 --set eval_limit=1"
GENERATE = f"{PRLHF} generate smoke --max-prompts 1 --max-new-tokens 1 --out new.jsonl"
MEASURES = {
    "import torch": _until_imported("import torch"),
    "import transformers": _until_imported("import transformers"),
    "import a Llama, peft": _until_imported("from transformers import LlamaForCausalLM; import peft"),
    "import Trainer": _until_imported("from transformers import Trainer"),
    "prlhf --help": Measure(f"{PRLHF} --help"),
    "train: first step": Measure(TRAIN, "smoke/metrics.jsonl"),
    "generate: first token": Measure(GENERATE, "new.jsonl*", after=TRAIN_LITTLE),
    "generate: end": Measure(GENERATE, after=TRAIN_LITTLE),
}

Seconds = tuple[float, float]  # wall, CPU
Found = dict[str, dict[str, dict[str, Any]]]  # measure -> tree -> medians, and all runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, action="append", help="a source tree; repeatable (default: here)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(MEASURES), help="this measure; repeatable")
    parser.add_argument("--json", action="store_true", help="medians and every run, in place of a table")
    args = parser.parse_args()
    trees = [tree.resolve() for tree in args.tree or [Path()]]
    found = measure(args.only or list(MEASURES), trees, args.repeats)
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def measure(names: Sequence[str], trees: Sequence[Path], repeats: int) -> Found:
    """Measure all trees in turn."""
    found: Found = {}
    for name in names:
        runs = [[measure_once(MEASURES[name], tree) for tree in trees] for _ in range(1 + repeats)]
        columns = zip(*runs[1:], strict=True)  # the first run filled the page cache
        found[name] = {str(tree): summary(column) for tree, column in zip(trees, columns, strict=True)}
    return found


def summary(runs: Sequence[Seconds]) -> dict[str, Any]:
    return {"wall": median(wall for wall, _ in runs), "cpu": median(cpu for _, cpu in runs), "runs": runs}


def measure_once(what: Measure, tree: Path) -> Seconds:
    with tempfile.TemporaryDirectory(prefix="prlhf-startup-") as folder:
        if what.after:
            time_one(what.after, tree, Path(folder))
        return time_one(what.given, tree, Path(folder), what.until)


def time_one(given: str, tree: Path, folder: Path, until: str = "") -> Seconds:
    """Run a measure in `folder` with the modules of `tree`."""
    command = [sys.executable, *shlex.split(given.format(tree=tree))]
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=said, stderr=subprocess.STDOUT
        )
        there = _wait(process.pid, folder, until)
        wall = time.perf_counter() - began
        if there:
            process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not there and (until or process.returncode):
            said.seek(0)
            raise SystemExit(f"{shlex.join(command)}: exit code {process.returncode}\n{said.read().decode()}")
    return wall, usage.ru_utime + usage.ru_stime


def _wait(process: int, folder: Path, until: str) -> bool:
    """Wait until a file of the pattern `until` has a line (true) or the process has ended; it is not reaped."""
    while True:
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if until and any(_has_line(path) for path in folder.glob(until)):
            return True
        if ended:
            return False
        time.sleep(EVERY)


def _has_line(path: Path) -> bool:
    try:
        return b"\n" in path.read_bytes()
    except FileNotFoundError:  # renamed since it was listed
        return False


def table(found: Found) -> str:
    """Return medians as Markdown: wall and CPU seconds of each tree."""
    trees = list(next(iter(found.values())))
    lines = [["", *(f"{Path(tree).name}: {kind} s" for tree in trees for kind in ("wall", "CPU"))]]
    lines.append(["---", *["---:"] * (2 * len(trees))])
    for name, by_tree in found.items():
        lines.append([name, *(f"{by_tree[tree][kind]:.2f}" for tree in trees for kind in ("wall", "cpu"))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
