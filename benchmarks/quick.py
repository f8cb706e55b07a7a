"""`make bench`: the benchmarks in a minute or two, compared with what was recorded on this kind of processor.

    python -m benchmarks.quick                  # exit code 1 if a ratio is below LEAST of the recorded one
    python -m benchmarks.quick --record         # write the ratios to benchmarks/recorded.json

Everything is a ratio of medians on the bundled tiny base, of contestants that take turns in this process: more is
faster. Ratios depend on the processor, so each is compared with its own record; without one, they are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded.json")
LEAST = 0.8  # of the recorded ratio: on a quiet machine repeated runs differ by less than a tenth
REPEATS = 7


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep what is found as this processor's record")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    found, name = ratios(args.repeats), processor()
    records = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    if args.record:
        RECORDED.write_text(json.dumps(records | {name: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    recorded = records.get(name, {})
    print(table(name, found, recorded))
    return 1 if slower(found, recorded) and not args.record else 0


def ratios(repeats: int) -> dict[str, float]:
    """How many times as fast as others we are, by what was measured."""
    return training(repeats) | users(repeats) | generation(repeats)


def training(repeats: int) -> dict[str, float]:
    """A training step over TRL's, in fp32 and in bf16."""
    from benchmarks.train_step import SHAPES, Shape, make_step, measure, summarize

    SHAPES["quick"] = Shape(200, 40, 2, prompts=2, raters=2)  # in a context of 512
    found = {}
    for precision in ("fp32", "bf16"):
        args = Namespace(shape="quick", model="tiny", precision=precision, pack_tokens=None, set=[])
        seconds = measure({engine: make_step(engine, args) for engine in ("ours", "trl")}, repeats)
        over = summarize(args, seconds, {})["ours_over"]
        found[f"training step over TRL's, {precision}"] = over["trl"]["speed"]
    return found


def users(repeats: int) -> dict[str, float]:
    """A step with ten users over one with 100,000."""
    from benchmarks.users import KINDS, steps

    with tempfile.TemporaryDirectory() as folder:
        found = steps("tiny", KINDS["individual"], [10, 100_000], Path(folder), repeats)
    few, many = (found[count]["step_s"] for count in ("10", "100000"))
    return {"step with 10 users over 100,000 users": few / many}


def generation(repeats: int) -> dict[str, float]:
    """Tokens per second over transformers' batched `generate` without users."""
    from benchmarks import generate

    policy = generate.open_policy("tiny")
    found = generate.measure(policy, max(1, repeats // 3), 200)
    return {
        f"generation over `generate`, {case}": found[case]["ours_times"]["plain"]["median"]
        for case in ("equal lengths", "mixed ends")
    }


def slower(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """The ratios that are below LEAST of the recorded ones."""
    return [name for name, ratio in found.items() if ratio < LEAST * recorded.get(name, 0.0)]


def processor() -> str:
    """The processor's name and what its matrix units know, on Linux; the architecture elsewhere."""
    import platform

    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in text.split()]
    return ", ".join([names[0] if names else platform.machine(), *known, f"{os.cpu_count()} cores"])


def table(name: str, found: dict[str, float], recorded: dict[str, float]) -> str:
    """The ratios beside the recorded ones."""
    late = slower(found, recorded)
    lines = [name if recorded else f"{name}: nothing was recorded for it, see --record"]
    for what, ratio in found.items():
        before = f" (recorded {recorded[what]:.2f})" if what in recorded else ""
        lines.append(f"{ratio:6.2f}  {what}{before}{'  SLOWER' if what in late else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
