"""Run the experiments of docs/RESULTS.md and write the page.

    python -m benchmarks.results                      # run everything that is missing, then write the page
    python -m benchmarks.results --only table1 --jobs 2
    python -m benchmarks.results --render             # only write the page

Each step is a `prlhf` command (benchmarks/steps.py). A step whose result exists is skipped, and an interrupted training
is resumed. Steps run in parallel in `--jobs` processes of one thread each, the best use of two cores for a model this
small.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from benchmarks.steps import EXPERIMENTS, Step, command_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="where data, runs and verdicts go")
    parser.add_argument("--only", action="append", choices=list(EXPERIMENTS), help="this experiment; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--render", action="store_true", help="run nothing")
    args = parser.parse_args()
    failed = 0
    if not args.render:
        names = args.only or list(EXPERIMENTS)
        failed = run_all([step for name in names for step in EXPERIMENTS[name].steps], args.work, args.jobs)
    from benchmarks.report import render

    render(args.work, Path("docs"))
    return 1 if failed else 0


def run_all(steps: list[Step], work: Path, jobs: int) -> int:
    """Run the missing steps, each after the steps that it needs; returns how many failed or were not tried."""
    waiting = [step for step in dict.fromkeys(steps) if not (work / step.done).exists()]
    began, running, failed = time.time(), dict[Future[int], Step](), 0
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    with pool:
        while waiting or running:
            ready = [s for s in waiting if all((work / need).exists() for need in s.needs)]
            for step in ready[: jobs - len(running)]:  # in the given order, one section after the other
                waiting.remove(step)
                running[pool.submit(run_step, step, work)] = step
            if not running:
                print("not tried, because a step that they need failed:", *(s.command for s in waiting), sep="\n  ")
                return failed + len(waiting)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                failed += future.result() != 0
                state = "done  " if future.result() == 0 else "FAILED"
                print(
                    f"{time.time() - began:6.0f} s  {state} {len(waiting) + len(running):3d} left  {step.command}",
                    flush=True,
                )
    return failed


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (bars of several processes would overwrite each other)


def run_step(step: Step, work: Path) -> int:
    """Run one command in this process; returns its exit code."""
    from typer.testing import CliRunner

    from prlhf_cli.main import app

    line = command_line(step, work)
    out = work / Path(step.done).parent
    if line[0] == "train" and (out / "recipe.yaml").exists():
        line.append("--resume")
    result = CliRunner().invoke(app, line)
    log = work / "logs" / (step.done.replace("/", "_") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"prlhf {' '.join(line)}\n{result.output}\n{result.exception or ''}\n", encoding="utf-8")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
