"""The cost by number of users: step time, peak memory, checkpoint size and load time for 10 to a million users.

    python -m benchmarks.users                        # a table; --json FILE for the numbers
    python -m benchmarks.users --users 10 100000 --base tiny

For individual users (from zeros, and from the vocabulary, which fills the table) and for 100 clusters:

step_s          an optimizer step of 8 comparisons of random users: forward, backward, clipping, AdamW; the median, with
                all sizes in turn in one process after a warm-up
step_gib        peak resident memory of a process that builds the policy and makes these steps; one process per size
resume_mib      the user model in a checkpoint for --resume: the changed rows
checkpoint_gib  users and user model in the finished model
load_all_s      time to load it for all users; the median for the fewest, one run for the others (in the page cache)
load_one_s      time to load it for one user; the median, with all sizes in turn in one process
load_one_gib    peak resident memory of a process that loads it for one user

Ratios are of the most users to the fewest; for load_one_s, to load_all_s of the fewest. The initial table makes no
difference once it is written, so the columns after the steps are measured from zeros only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "individual": {"user_model": "individual", "user_init": "zero"},
    "individual, from the vocabulary": {"user_model": "individual"},
    "cluster, K = 100": {"user_model": "cluster", "k": 100, "user_init": "zero"},
}
STEPPED = ("step_s", "step_gib")
STORED = ("resume_mib", "checkpoint_gib", "load_all_s", "load_one_s", "load_one_gib")
WARM_UP, STEPS, LOADS, COMPARISONS = 3, 15, 15, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10, 10_000, 1_000_000])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers, too")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)  # for a separate process: what, kind and folder
    args = parser.parse_args()
    if args.part:
        what, kind, folder = args.part
        print(json.dumps(PARTS[what](args.base, KINDS[kind], args.users, Path(folder))))
        return 0
    measured = {kind: measure(kind, args.base, sorted(args.users)) for kind in KINDS}
    print("\n\n".join(as_table(kind, rows) for kind, rows in measured.items()))
    if args.json:
        args.json.write_text(json.dumps({"base": args.base, "kinds": measured}, indent=2) + "\n")
    return 0


def measure(kind: str, base: str, users: list[int]) -> dict[str, dict[str, float]]:
    """Return all columns by number of users, and `ratio` of the most users to the fewest."""
    folder = Path(tempfile.mkdtemp(prefix="prlhf-users-"))

    def part(what: str, sizes: list[int]) -> Any:
        line = [sys.executable, "-W", "ignore", "-m", "benchmarks.users", "--base", base]
        line += ["--part", what, kind, str(folder), "--users"]
        done = subprocess.run([*line, *map(str, sizes)], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    stored = KINDS[kind].get("user_init") == "zero"
    try:
        rows = {str(count): part("train", [count]) for count in users}
        spread(part("steps", users), rows)
        if stored:
            spread(part("loads", users), rows)
            spread({str(count): part("load_one", [count]) for count in users}, rows)
    finally:
        shutil.rmtree(folder)
    few, many = rows[str(users[0])], rows[str(users[-1])]
    ratio = {name: many[name] / few[name] for name in few}
    return rows | {"ratio": ratio | ({"load_one_s": many["load_one_s"] / few["load_all_s"]} if stored else {})}


def spread(found: dict[str, dict[str, float]], rows: dict[str, dict[str, float]]) -> None:
    for count, values in found.items():
        rows[count] |= values


def as_table(kind: str, rows: dict[str, dict[str, float]]) -> str:
    columns = [name for name in (*STEPPED, *STORED) if name in rows["ratio"]]
    lines = [f"{kind:32}" + "".join(f"{name:>16}" for name in columns)]
    lines += [f"{count:>32}" + "".join(f"{values[name]:16.4g}" for name in columns) for count, values in rows.items()]
    return "\n".join(lines)


# ---- measured in separate processes ----


def steps(
    base: str, options: dict[str, Any], users: list[int], folder: Path, repeats: int = STEPS
) -> dict[str, dict[str, float]]:
    made = {count: stepper(base, options, count, folder) for count in users}
    seconds: dict[int, list[float]] = {count: [] for count in users}
    for _ in range(WARM_UP + repeats):
        for count, (step, _) in made.items():
            seconds[count].append(timed(step))
    return {str(count): {"step_s": statistics.median(values[WARM_UP:])} for count, values in seconds.items()}


def train(base: str, options: dict[str, Any], users: list[int], folder: Path) -> dict[str, float]:
    from prlhf.model.checkpoint import save_policy
    from prlhf.model.weights import save_weights

    step, loop = stepper(base, options, users[0], folder)
    for _ in range(WARM_UP + STEPS):
        step()
    found = {"step_gib": peak_gib()}
    if options.get("user_init") != "zero":
        return found
    save_weights(loop.model, folder / "resume", loop.optimizer.touched)
    resume = (folder / "resume/user_model.safetensors").stat().st_size
    model = folder / str(users[0])
    model.mkdir()
    save_policy(loop.policy, model)
    own = sum(path.stat().st_size for path in model.glob("user*"))
    return found | {"resume_mib": resume / 2**20, "checkpoint_gib": own / 2**30}


def loads(_base: str, _options: dict[str, Any], users: list[int], folder: Path) -> dict[str, dict[str, float]]:
    from prlhf.model.checkpoint import load_policy

    def load(count: int, wanted: list[str] | None) -> float:
        return timed(lambda: load_policy(folder / str(count), "cpu", users=wanted))

    load(users[0], None)
    one: dict[int, list[float]] = {count: [] for count in users}
    few = []
    for _ in range(LOADS):
        few.append(load(users[0], None))
        for count in users:
            one[count].append(load(count, [f"u{count}"]))
    every = {count: statistics.median(few) if count == users[0] else load(count, None) for count in users}
    return {str(count): {"load_one_s": statistics.median(one[count]), "load_all_s": every[count]} for count in users}


def load_one(_base: str, _options: dict[str, Any], users: list[int], folder: Path) -> dict[str, float]:
    from prlhf.model.checkpoint import load_policy

    load_policy(folder / str(users[0]), "cpu", users=[f"u{users[0]}"])
    return {"load_one_gib": peak_gib()}


PARTS: dict[str, Callable[..., Any]] = {"steps": steps, "train": train, "loads": loads, "load_one": load_one}


def stepper(base: str, options: dict[str, Any], users: int, folder: Path) -> tuple[Callable[[], None], Any]:
    """Return a function that makes an optimizer step on comparisons of random users, and its loop."""
    import random

    import torch

    from prlhf.config import TrainConfig
    from prlhf.dataset import Comparison
    from prlhf.model.base import load_base
    from prlhf.model.checkpoint import assemble
    from prlhf.model.reference import Reference
    from prlhf.model.rewards import engine_of
    from prlhf.train.encode import EncodedSet
    from prlhf.train.loop import Loop
    from prlhf.train.objectives import objective_of
    from prlhf.train.optimizer import clip_grad_norm

    torch.set_num_threads(1)
    config = TrainConfig(model=base, device="cpu", precision="fp32", lora_dropout=0.0, out=folder / "run", **options)
    policy = assemble(load_base(base), config, [f"u{i}" for i in range(1, users + 1)], {})
    encoder, rng = policy.encoder(), random.Random(0)

    def comparison(i: int) -> Comparison:
        prompt = f"POST: my sister lost {i} boats and my boss found them.\nTL;DR:"
        user = rng.randint(1, users)
        return Comparison(
            f"{i}", prompt, " my sister lost boats.", " my boss found them.", f"u{user}", user, "", "", True
        )

    engine, nothing = engine_of(policy), EncodedSet([], [])
    loop = Loop(policy, engine, objective_of(engine, Reference(engine), config), nothing, nothing)

    def step() -> None:
        batch = [encoder.comparison(comparison(i)) for i in range(COMPARISONS)]  # the same texts: other users
        loop.optimizer.zero_grad()
        loop.catch_up({0, *(row.user_index for row in batch)})
        loop.backward([batch])
        clip_grad_norm(loop.model.parameters(), config.max_grad_norm)
        loop.optimizer.step()

    return step, loop


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_gib() -> float:
    from benchmarks.train_step import peak_bytes

    return peak_bytes() / 2**30


if __name__ == "__main__":
    sys.exit(main())
