"""`python -m benchmarks.fuzz`: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "data")]  # the tests' small base and data are damaged


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds together, or of --only each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a kind, as in 'rows*'; repeatable")
    parser.add_argument("--case", metavar="KIND:NUMBER", help="run one case, and show its traceback")
    args = parser.parse_args()
    from benchmarks.fuzz import campaign
    from benchmarks.fuzz.kinds import DRAWN, KINDS
    from benchmarks.fuzz.kinds.material import make

    with tempfile.TemporaryDirectory(prefix="prlhf-fuzz-") as place:
        material = make(Path(place) / "material")
        if args.case:
            kind, _, number = args.case.rpartition(":")
            outcome = campaign.one(kind, int(number), args.seed, material, Path(place) / "work")
            print(outcome.trace, outcome.about, f"{outcome.verdict} {outcome.line}", sep="\n")
            return outcome.verdict == "fault"
        shares = {name: share for name, (share, _) in {**KINDS, **DRAWN}.items()}
        chosen = [name for name in shares if not args.only or any(fnmatch(name, one) for one in args.only)]
        whole = sum(shares.values())
        counts = {name: args.cases if args.only else round(args.cases * shares[name] / whole) for name in chosen}
        print(f"seed {args.seed}\n{campaign.HEAD}\n{campaign.RULE}", flush=True)
        began = time.perf_counter()
        found = campaign.campaign(counts, args.seed, material, lambda line: print(line, flush=True))
        print(campaign.row("all", found, time.perf_counter() - began))
        causes = campaign.faults(found)
        print(f"\n{len(causes)} causes of faults", *causes, sep="\n")
        return bool(causes)


if __name__ == "__main__":
    sys.exit(main())
