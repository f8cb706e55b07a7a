"""Run an experiment on real text, and say what was found.

    python -m benchmarks.real_text psoups-strong --raw FOLDER                     # everything that is missing
    python -m benchmarks.real_text psoups-strong --raw FOLDER --arms soft --seeds 0
    python -m benchmarks.real_text psoups-strong --raw FOLDER --list              # run nothing: what is missing?
    python -m benchmarks.real_text psoups-strong --raw FOLDER --gather            # run nothing: what was found?

`--raw` holds the raw data, a folder per data set (experiments.py). What was found is printed and written to
WORK/NAME.json; `python -m benchmarks.results --render` makes the page of all experiments.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.real_text.base import downloaded_base
from benchmarks.real_text.experiments import EXPERIMENTS
from benchmarks.real_text.tasks import STAGES, missing, run, tasks_of


def main() -> int:
    args = parsed()
    experiment = EXPERIMENTS[args.experiment]
    given = {"precision": args.precision, "shots": args.shots}
    experiment = replace(experiment, **{name: value for name, value in given.items() if value})
    model = args.model or downloaded_base(args.work / "base")
    seeds = [int(seed) for seed in args.seeds.split(",")] if args.seeds else []
    tasks = list(tasks_of(experiment, args.work, args.raw, model, seeds))
    known = {arm.name for arm in experiment.arms}
    arms = set(args.arms.split(",")) if args.arms else known
    if arms - known:
        raise SystemExit(f"{', '.join(sorted(arms - known))}: not an arm of {experiment.name}: {', '.join(known)}")
    arms |= {needed for name in arms for needed in (experiment.arm(name).base, experiment.arm(name).reward)}
    stages = args.stages.split(",") if args.stages else STAGES
    chosen = [t for t in tasks if t.stage == "prep" or (t.name.split("/")[0] in arms and t.stage in stages)]
    failed = 0
    if args.list:
        for task in missing(chosen):
            print(task.command)
        return 0
    if not args.gather:
        failed = run(chosen, args.work / experiment.name / "logs")
    from benchmarks.real_text.gather import gather
    from benchmarks.real_text.page import as_markdown

    found = gather(experiment, args.work)
    (args.work / f"{experiment.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(found))
    return 1 if failed else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--work", type=Path, default=Path("runs/results/real-text"), help="where data and runs go")
    parser.add_argument("--raw", type=Path, default=Path("raw"), help="folder of the raw data")
    parser.add_argument("--model", help="base model, a folder or .gguf file; by default SmolLM2-135M-Instruct of PyPI")
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], help="in place of the experiment's: fp32 on a CPU without bf16"
    )
    parser.add_argument("--arms", default="", help="only these, with commas between")
    parser.add_argument("--seeds", default="", help="only these, with commas between")
    parser.add_argument("--shots", default="", help="how many choices of newcomers are learned from: 1,2,16")
    parser.add_argument("--stages", default="", help=f"only these of {','.join(STAGES)}")
    parser.add_argument("--list", action="store_true", help="print the commands that are missing, run nothing")
    parser.add_argument("--gather", action="store_true", help="run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
