"""How well the closed form ranks held-out comparisons: a baseline without any training.

    python -m benchmarks.closed_form data/crowd --model BASE --seeds 0 1 2        # --json FILE for the numbers
    python -m benchmarks.closed_form data/crowd --model BASE --choices 4 8 16     # with so many comparisons per user

`data/crowd` is a prepared data set. Accuracy is the mean over seen users in percent, as themselves and as the generic
user; c is the number of directions that predict held-out choices best. The hidden states are kept on disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from prlhf.progress import Progress


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", required=True, help="the base: hub id, folder or .gguf file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--choices", type=int, nargs="+", default=[10**9], help="comparisons per user at most")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    args = parser.parse_args()
    from prlhf_cli.bars import Bars

    rows = measure(args.dataset, args.model, args.precision, args.seeds, args.choices, Bars())
    print(as_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def measure(
    dataset: Path, model: str, precision: str, seeds: list[int], choices: list[int], progress: Progress
) -> list[dict[str, Any]]:
    from prlhf.config import TrainConfig
    from prlhf.config.train import WITHOUT_USERS
    from prlhf.dataset import read_prepared
    from prlhf.model.checkpoint import build_policy
    from prlhf.model.closed_form import closed_form
    from prlhf.model.response_states import ResponseStates, open_states
    from prlhf.model.rewards import Scored, accuracy_summary, engine_of
    from prlhf.train.encode import encode

    data = read_prepared(dataset)
    config = TrainConfig(model=model, precision=precision, skip_long=True, **WITHOUT_USERS)
    policy = build_policy(config, data.user_ids, {})
    train, held_out, _ = encode(policy, data)
    seen = [i for i, row in enumerate(held_out.rows) if row.user_index > 0]
    tested, owners = [held_out.encoded[i] for i in seen], [held_out.rows[i].user_index for i in seen]
    states = ResponseStates(engine_of(policy, progress), open_states(policy.model.lm, progress))
    began = time.perf_counter()
    kept = {(most, seed): first_of_each(train.encoded, most, seed) for most in choices for seed in seeds}
    states.fill([*(comparison for some in kept.values() for comparison in some), *tested], config.batch_size, progress)
    passed, rows = time.perf_counter() - began, []
    for most in choices:
        for seed in seeds:
            began = time.perf_counter()
            found = closed_form(states, kept[most, seed], len(data.user_ids), seed)
            seconds = time.perf_counter() - began
            own, generic = (
                [Scored(margin, 0.0) for margin in found.margins(states, tested, indices).tolist()]
                for indices in (owners, [0] * len(owners))
            )
            summary = accuracy_summary([held_out.rows[i].user_id for i in seen], owners, own, generic)
            rows.append(
                {
                    "choices": most if most < 10**9 else len(train) // len(data.user_ids),
                    "seed": seed,
                    "accuracy": summary["accuracy_macro"],
                    "worst_tenth": summary["accuracy_worst_tenth"],
                    "generic": summary["accuracy_generic"],
                    "directions": found.codes.shape[1],
                    "strengths": found.tastes.strengths[:6].tolist(),
                    "held_out": found.tastes.held_out,
                    "pass_s": passed,
                    "computed": states.computed,
                    "closed_form_s": seconds,
                }
            )
    return rows


def first_of_each(data: list[Any], most: int, seed: int) -> list[Any]:
    """At most `most` comparisons of each user, drawn at random."""
    import random

    shuffled = random.Random(seed).sample(data, len(data))
    counts: dict[int, int] = defaultdict(int)
    kept = []
    for comparison in shuffled:
        counts[comparison.user_index] += 1
        if counts[comparison.user_index] <= most:
            kept.append(comparison)
    return kept


def as_table(rows: list[dict[str, Any]]) -> str:
    head = f"{'choices':>8}{'seed':>6}{'c':>4}{'accuracy':>10}{'worst 10%':>11}{'generic':>9}{'seconds':>9}"
    lines = [
        f"{row['choices']:8}{row['seed']:6}{row['directions']:4}{100 * row['accuracy']:10.1f}"
        f"{100 * row['worst_tenth']:11.1f}{100 * row['generic']:9.1f}{row['closed_form_s']:9.1f}"
        for row in rows
    ]
    last = rows[-1]
    return "\n".join([head, *lines, f"one pass over {last['computed']} new responses: {last['pass_s']:.0f} s"])


if __name__ == "__main__":
    sys.exit(main())
