"""What `group_by_prompt` gives and costs: six users of demo-profiles who compare summaries of the same posts.

    python -m benchmarks.grouping --seeds 0 1 2                 # --json FILE for the numbers

The posts to train on, and those that are tested, are held-out posts of demo-profiles by different seeds, since all six
users compare each of those. One epoch by the recipe, once with a batch's comparisons drawn from all posts and once with
those of a post next to each other; accuracy is the mean over users, in percent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

POSTS = 3  # hundred, to train on
EPOCH = 113  # steps
ARMS = {"apart": False, "together": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=EPOCH)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prlhf-grouping-") as folder:
        found = [row for seed in args.seeds for row in measure(seed, Path(folder) / str(seed), args.steps)]
    print(as_table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(seed: int, work: Path, steps: int = EPOCH) -> list[dict[str, Any]]:
    """Train both arms in turn."""
    import prlhf

    data = shared_posts(seed, work)
    rows = []
    for name, together in ARMS.items():
        run = prlhf.train(
            data,
            recipe="demo-profiles",
            model="tiny",
            out=work / name,
            seed=seed,
            max_steps=steps,
            group_by_prompt=together,
        )
        rows.append(
            {
                "seed": seed,
                "arm": name,
                "accuracy": run.eval.accuracy_macro,
                "generic": run.eval.accuracy_generic,
                "loss": run.loss,
                "step_seconds": run.train_seconds / run.steps,
            }
        )
    return rows


def shared_posts(seed: int, work: Path) -> Any:
    """A prepared data set in which all users compare each post."""
    import prlhf
    from prlhf.dataset import read_prepared

    raw = work / "raw"
    raw.mkdir(parents=True)
    for number in range(POSTS + 1):
        part = prlhf.prepare("demo-profiles", seed=100 * seed + number, comparisons=1, out=work / f"part-{number}")
        with (raw / ("train.jsonl" if number < POSTS else "eval.jsonl")).open("a", encoding="utf-8") as file:
            for row in read_prepared(part.folder).eval:
                columns = ("prompt", "chosen", "rejected", "user_id")
                file.write(json.dumps({name: getattr(row, name) for name in columns}) + "\n")
    return prlhf.prepare(raw, out=work / "data")


def as_table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'arm':10}{'seeds':>6}{'accuracy':>16}{'as generic':>12}{'s a step':>10}"]
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        accuracies = [100 * row["accuracy"] for row in own]
        generic, seconds = (statistics.mean(row[key] for row in own) for key in ("generic", "step_seconds"))
        spread = f"{statistics.mean(accuracies):.1f} ({min(accuracies):.0f}-{max(accuracies):.0f})"
        lines.append(f"{name:10}{len(own):6}{spread:>16}{100 * generic:12.1f}{seconds:10.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
