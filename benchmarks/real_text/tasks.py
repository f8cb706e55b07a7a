"""An experiment as commands in a valid order, each with the file that shows that it is done.

WORK/psoups-strong/data/                  prepared data
WORK/psoups-strong/soft/0/run/            arm `soft`, seed 0
                          scores.jsonl    held-out comparisons
                          responses.jsonl
                          measures.jsonl  of the responses
                          newcomers/      people who were in no training, after a few of their choices
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.real_text.experiments import Arm, Experiment

PRLHF, SCORES, MEASURES = "prlhf_cli.main", "benchmarks.real_text.scores", "benchmarks.real_text.measures"
NEWCOMERS = "benchmarks.real_text.newcomers"
TASTES, PEOPLE = "tastes.json", "newcomers"
ROOT = Path(__file__).parents[2]
STAGES = ("prep", "train", "score", "write", "measure", "adapt")


@dataclass(frozen=True)
class Task:
    """A command: a module of Python and its arguments."""

    stage: str
    name: str  # the arm and its seed, or the data set
    module: str
    arguments: str
    done: Path  # the last file that it writes
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return f"{'prlhf' if self.module == PRLHF else f'python -m {self.module}'} {self.arguments}"


def tasks_of(experiment: Experiment, work: Path, raw: Path, model: str, seeds: Sequence[int] = ()) -> Iterator[Task]:
    """All tasks of an experiment, seed after seed; `model` is the base, `seeds` those of the experiment by default."""
    root = work / experiment.name
    for name, prep in experiment.data.items():
        out = root / name
        yield Task("prep", name, PRLHF, f"prep {prep.format(raw=raw)} --out {out}", out / "manifest.json")
    if experiment.tastes:
        line = f"{raw / experiment.tastes} {root / TASTES}"
        yield Task("prep", TASTES, "benchmarks.real_text.tastes", line, root / TASTES)
    if experiment.newcomers:
        line = f"{root / 'data'} {root / PEOPLE} {experiment.newcomers.format(raw=raw)}"
        yield Task("prep", PEOPLE, NEWCOMERS, line, root / PEOPLE / "manifest.json", (root / "data" / "manifest.json",))
    for seed in seeds or experiment.seeds:
        for arm in experiment.arms:
            yield from _tasks_of_arm(experiment, arm, seed, root, model)


def _tasks_of_arm(experiment: Experiment, arm: Arm, seed: int, root: Path, model: str) -> Iterator[Task]:
    computed = f"--precision {experiment.precision}"
    name, here, data = f"{arm.name}/{seed}", root / arm.name / str(seed), root / arm.data
    run, ready = here / "run", data / "manifest.json"
    trained = run / "results.json"
    if not arm.baseline:
        run_of = {other: root / other / str(seed) / "run" for other in (arm.base, arm.reward) if other}
        needs = [ready, *(other / "results.json" for other in run_of.values())]
        base = run_of[arm.base] / "model" if arm.base else model
        reward = f" --reward {run_of[arm.reward]}" if arm.reward else ""
        options = f"{experiment.train} {computed} --max-tokens {experiment.max_tokens} {arm.train}{reward}"
        line = f"train --dataset {data} --model {base} {options} --seed {seed} --out {run}"
        yield Task("train", name, PRLHF, line, trained, tuple(needs))
    if arm.scored:
        who = f"--told {model} --max-tokens {experiment.max_tokens}" if arm.baseline else str(run)
        line = f"{who} --dataset {data} --limit {experiment.limit} {computed} --out {here}/scores.jsonl"
        yield Task("score", name, SCORES, line, here / "scores.jsonl", (ready if arm.baseline else trained,))
    if arm.writes:
        who = f"--baseline {arm.baseline} --model {model} --dataset {data}" if arm.baseline else str(run)
        users = "" if arm.baseline == "base" else f"--users {arm.users}"
        how = experiment.generate.format(data=root / "data")
        out = here / "responses.jsonl"
        line = f"generate {who} {users} {how} {computed} --seed {seed} --out {out}"
        yield Task("write", name, PRLHF, line, out, (ready if arm.baseline else trained,))
        line = f"{out} --model {model} {computed} --out {here}/measures.jsonl"
        yield Task("measure", name, MEASURES, line, here / "measures.jsonl", (out,))
    if arm.adapts and experiment.newcomers:
        how = f"--few-shot {experiment.shots} --dataset {root / PEOPLE} --seed {seed} {computed}"
        needs = [trained, root / PEOPLE / "manifest.json"]
        line = f"judge --checkpoint {run} {how} --out {here / PEOPLE}"
        yield Task("adapt", name, PRLHF, line, here / PEOPLE / "results.json", tuple(needs))


def missing(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that are not done; a file that shows it is written as a whole."""
    return [task for task in tasks if not task.done.exists()]


def run(tasks: Sequence[Task], logs: Path) -> int:
    """Run what is missing, one after another, each with a log; returns how many failed or were not tried.

    A training that was interrupted is resumed. What needs a task that failed is not tried.
    """
    logs.mkdir(parents=True, exist_ok=True)
    failed = 0
    for task in missing(tasks):
        began, log = time.time(), logs / f"{task.stage}-{task.name.replace('/', '-')}.log"
        ready = all(need.exists() for need in task.needs)
        done = ready and call(task, log)
        failed += not done
        state = "done" if done else f"FAILED, see {log}" if ready else "not tried, it needs what failed"
        print(f"{time.time() - began:6.0f} s  {task.stage:7} {task.name:20} {state}", flush=True)
    return failed


def call(task: Task, log: Path) -> bool:
    """Run a command in a process of its own, with its output in `log`; returns whether it succeeded."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with log.open("w", encoding="utf-8") as file:
        print(task.command, file=file, flush=True)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        found = subprocess.run(command_line(task), stdout=file, stderr=file, env=environment, check=False)
    return found.returncode == 0


def command_line(task: Task) -> list[str]:
    """What is run for a task: with `--resume` if its training was begun."""
    resumed = task.stage == "train" and (task.done.parent / "recipe.yaml").exists()
    return [sys.executable, "-m", task.module, *shlex.split(task.arguments), *(["--resume"] if resumed else [])]
