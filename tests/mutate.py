"""Put the faults of tests/mutations.yaml into a copy of the tree, one at a time, and run the tests that should fail.

    python tests/mutate.py [PART OF A NAME OR FILE ...] [--log FILE]

Torch and similar packages are imported once; each fault gets a fork of that process. For each fault, `killed` or
`SURVIVED` is printed; the exit code is 1 if one survived. The tests are first run without a fault, because tests that
fail anyway would seem to kill every fault; `--trust` skips this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests/mutations.yaml"
PARTS = ("prlhf", "prlhf_cli", "recipes", "tests", "benchmarks", "docs", "pyproject.toml", "constraints.txt")
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pyarrow.parquet", "hypothesis", "pytest", "trl")
LIMIT = 600  # seconds for the tests of one fault


@dataclass(frozen=True)
class Mutant:
    """A fault: the text `was`, which occurs once in `file`, is replaced by `now`; one of `tests` should fail."""

    file: str
    name: str
    was: str
    now: str
    tests: tuple[str, ...]


def mutants(table: Path = TABLE) -> Iterator[Mutant]:
    """Return every fault of the table, in its order."""
    for file, entry in yaml.safe_load(table.read_text(encoding="utf-8")).items():
        for name, (was, now, *other) in entry["mutants"].items():
            yield Mutant(file, name, was, now, tuple((other[0] if other else entry["tests"]).split()))


def applied(mutant: Mutant, tree: Path) -> str:
    """Return the text of the mutant's file in `tree` with the fault; raises ValueError if `was` does not occur once."""
    text = (tree / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.was) != 1:
        raise ValueError(f"{mutant.file}: {text.count(mutant.was)} times {mutant.was!r}")
    return text.replace(mutant.was, mutant.now)


def outcome(mutant: Mutant, tree: Path) -> str:
    """Return the result of the tests of `mutant`: `killed`, `SURVIVED`, `killed (time)`, or a fault of its entry."""
    try:
        text = applied(mutant, tree)
    except ValueError as error:
        return f"GONE {error}"
    whole = (tree / mutant.file).read_text(encoding="utf-8")
    (tree / mutant.file).write_text(text, encoding="utf-8")
    try:
        return run_tests(mutant.tests, tree)
    finally:
        (tree / mutant.file).write_text(whole, encoding="utf-8")


def run_tests(tests: tuple[str, ...], tree: Path) -> str:
    """Return whether `tests` fail in `tree`, in a separate process."""
    child = os.fork()
    if not child:
        _become_pytest(tests, tree)
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return {0: "SURVIVED", 1: "killed", 2: "killed"}.get(code, f"WRONG pytest ended with {code}")
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "killed (time)"


def _become_pytest(tests: tuple[str, ...], tree: Path) -> None:
    """Run pytest in this process and end it."""
    os.setsid()
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    code = 3
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:xdist", *tests]))
    finally:
        os._exit(code)


def main() -> int:
    """Try the given mutants, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("some", nargs="*", help="parts of names or files; without them all faults are tried")
    parser.add_argument("--log", type=Path, help="also write the outcomes to this file")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a fault first")
    args = parser.parse_args()
    chosen = [one for one in mutants() if not args.some or any(s in f"{one.file} {one.name}" for s in args.some)]
    for name in HEAVY:
        import_module(name)
    lines, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for part in PARTS:
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / part)
        for test in [] if args.trust else sorted({test for mutant in chosen for test in mutant.tests}):
            if (said := run_tests((test,), Path(folder))) != "SURVIVED":
                sys.exit(f"{test} fails without a fault: {said}")
        for number, mutant in enumerate(chosen, start=1):
            began = time.monotonic()
            said = outcome(mutant, Path(folder))
            failed += not said.startswith("killed")
            took = time.monotonic() - began
            lines.append(f"{number}/{len(chosen)} {said}: {mutant.file}: {mutant.name} ({took:.0f} s)")
            print(lines[-1], flush=True)
            if args.log:
                args.log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(chosen) - failed} of {len(chosen)} killed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
