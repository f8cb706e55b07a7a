"""`python -m benchmarks.faults`: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.faults.stages import Stage

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "judge")]  # the tests' small base and data, and the server that judges
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))


@contextmanager
def server() -> Iterator[str]:
    """Run a judge that prefers the longer response, with some delay."""
    from scripted import prefers, serving

    longer = prefers(len)

    def slowly(body: object, number: int) -> object:
        time.sleep(0.03)
        return longer(body, number)  # type: ignore[arg-type]

    with serving(slowly) as state:  # type: ignore[arg-type]
        yield state.url


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument("--kills", type=int, default=60, help="of all stages together, or of --only each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a stage, as in 'train*'; repeatable")
    parser.add_argument("--keep", type=Path, help="keep unequal results and the commands' output in this folder")
    args = parser.parse_args()
    from benchmarks.faults.stages import make

    with tempfile.TemporaryDirectory(prefix="prlhf-faults-") as scratch, server() as url:
        root = (args.keep or Path(scratch)).resolve()
        stages = make(root, url)
        whole = sum(stage.kills for stage in stages)
        print("| stage | kills | equal | undisturbed, s | killed after, s | files at that time |", flush=True)
        print("|---|--:|--:|--:|---|---|", flush=True)
        wrong = 0
        for stage in stages:
            if not args.only or any(fnmatch(stage.name, one) for one in args.only):
                count = args.kills if args.only else round(args.kills * stage.kills / whole)
                wrong += killed(stage, count, args.seed, root)
        return bool(wrong)


def killed(stage: Stage, count: int, seed: int, root: Path) -> int:
    """Kill a stage `count` times, and print its row; returns how many results were not equal."""
    from benchmarks.faults.kills import kill, undisturbed

    whole = undisturbed(stage, root)
    found = [kill(stage, number, whole, seed, root) for number in range(count)]
    equal = sum(not one.wrong for one in found)
    after = ", ".join("+".join(f"{seconds:.1f}" for seconds in one.after) for one in found)
    where = "; ".join(dict.fromkeys(one.where for one in found))
    print(f"| {stage.name} | {count} | {equal} | {whole.seconds:.1f} | {after} | {where[:300]} |", flush=True)
    for one in found:
        for line in one.wrong[:10]:
            print(f"    {stage.name} {one.number}, after {one.after} ({one.where}): {line}", flush=True)
    return count - equal


if __name__ == "__main__":
    sys.exit(main())
