"""The experiments of docs/RESULTS.md as `prlhf` commands.

A step is a command line and the file that shows that it is done. `{w}` is the working folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Step:
    command: str  # without the leading `prlhf`
    done: str  # the last file that the command writes, under the working folder
    needs: tuple[str, ...] = ()  # `done` of the steps before it


@dataclass
class Experiment:
    """One section of the results: its steps in a valid order."""

    name: str
    steps: list[Step] = field(default_factory=list)

    def prep(self, dataset: str, out: str, options: str = "") -> str:
        return self.add(f"prep {dataset} {options} --out {{w}}/{out}", f"{out}/manifest.json")

    def train(self, data: str, out: str, recipe: str, options: str = "", *needs: str) -> str:
        command = f"train --recipe {recipe} --dataset {{w}}/{data} {options} --out {{w}}/{out}"
        return self.add(command, f"{out}/results.json", f"{data}/manifest.json", *needs)

    def generate(self, run: str, out: str, recipe: str, options: str = "") -> str:
        command = f"generate {{w}}/{run} --recipe {recipe} {options} --out {{w}}/{out}"
        return self.add(command, out, f"{run}/results.json")

    def judge(self, a: str, b: str, judge: str, out: str) -> str:
        command = f"judge {{w}}/{a} {{w}}/{b} --judge {judge} --out {{w}}/{out}"
        return self.add(command, f"{out}/results.json", a, b)

    def accuracy(self, run: str, data: str, out: str) -> str:
        command = f"judge --checkpoint {{w}}/{run} --dataset {{w}}/{data} --out {{w}}/{out}"
        return self.add(command, f"{out}/results.json", f"{run}/results.json")

    def add(self, command: str, done: str, *needs: str) -> str:
        self.steps.append(Step(" ".join(command.split()), done, needs))
        return done


VANILLA = "--user-model uniform --user-tokens 0"
DEMO_SEEDS = (0, 1, 2, 3, 4)
OPPONENTS = ("base", "vanilla", "oracle", "in-context", "lora-per-user", "chosen")  # of P-DPO on demo-profiles
ABLATIONS: dict[str, dict[str, str]] = {  # on the demo's data; "" is the recipe: alpha 0.5, T_u 10, individual, NLL 1
    "alpha": {"0": "--alpha 0", "0.25": "--alpha 0.25", "0.5": "", "0.75": "--alpha 0.75", "1": "--alpha 1"},
    "T_u": {"1": "--user-tokens 1", "5": "--user-tokens 5", "10": "", "20": "--user-tokens 20"},
    "K": {value: f"--user-model cluster --k {value}" for value in ("2", "5", "10", "50")},
    "nll": {"0": "--nll 0", "0.5": "--nll 0.5", "1": ""},
    "start": {"zero": "--user-init zero", "random": "--user-init random", "vocabulary": ""},
    "users": {"10": "", "40": "40"},  # 40: other data
}
CROWD_SEEDS = (0, 1, 2)
CROWD_MODELS = {"gates": "", "gates-k10": "--user-model cluster --k 10", "vanilla": VANILLA}
PAPER_MODELS = {  # on the same data, with the paper's soft prompts
    "individual": "",
    "vanilla": VANILLA,
    "k10": "--user-model cluster --k 10",
    "k100": "--user-model cluster --k 100",
}
FEW = (1, 2, 5, 20, 80)  # comparisons per user
NOISE = (0, 0.1, 0.3)  # share of choices that are turned around
FEW_MODELS = {  # recipe and options
    "vanilla": ("demo-crowd", VANILLA),
    "gates": ("demo-crowd", ""),
    "gates-k10": ("demo-crowd", "--user-model cluster --k 10"),
    "paper-vanilla": ("demo-crowd-paper", VANILLA),
    "paper-zero": ("demo-crowd-paper", ""),
    "paper-choices": ("demo-crowd-paper", "--user-init choices"),
}
EIGHTY = "--alpha 0.75 --max-steps 80 --eval-limit 120"  # of P-DPO, as many steps as those in rounds have
IN_ROUNDS = (
    "--alpha 0.75 --rounds 4 --round-steps 20 --round-prompts 96 --candidates 6 --max-new-tokens 48 --eval-limit 120"
)
IN_PASSES = f"{IN_ROUNDS} --batch-size 5"  # so that a round's prompts are trained on about once
AGAINST_REWARD = {  # options of policies that are optimized against P-RM
    "online": f"--objective online-dpo {IN_ROUNDS}",
    "grpo": f"--objective grpo {IN_PASSES}",
    "rloo": f"--objective rloo {IN_PASSES}",
}
BEST = "best-of-8"  # of P-DPO's responses
RECIPES = {  # of reward models and of what they score
    "crowd": "demo-crowd-paper",
    "profiles": "demo-profiles",
}
REWARDED = {  # data set: options of its users, of `prep` and of `generate`; and what is compared with P-DPO
    "crowd": (
        "--user-model cluster --k 10",
        "--users 60 --comparisons 40",
        "--prompts eval --max-prompts 10",
        ("online", "grpo", "rloo", BEST),
    ),
    "profiles": ("", "", "--max-prompts 60", ("rloo",)),
}
SWEEPS = ("alpha", "tu", "k")  # recipes/sweep-NAME.yaml


def figure3() -> Experiment:
    """Section 5.1: the demo over seeds."""
    experiment = Experiment("figure3")
    for seed in DEMO_SEEDS:
        experiment.add(f"demo --seed {seed} --out {{w}}/demo-{seed}", f"demo-{seed}/results.json")
    return experiment


def table1() -> Experiment:
    """Section 5.2: six profiles, P-DPO against every baseline, judged by the exact oracle."""
    e, recipe, data = Experiment("table1"), "demo-profiles", "profiles/data"
    e.prep("demo-profiles", data, f"--recipe {recipe}")
    for name, options in {"p-dpo": "", "vanilla": VANILLA, "lora-per-user": "--per-user --max-steps 40"}.items():
        e.train(data, f"profiles/{name}", recipe, options)
    users = {"p-dpo": "all", "vanilla": "generic", "lora-per-user": "seen"}
    for name, who in users.items():
        e.generate(f"profiles/{name}", f"profiles/{name}.jsonl", recipe, f"--users {who}")
    baselines = {
        "base": "",
        "oracle": "--users seen",
        "in-context": "--users seen --examples 1",
        "chosen": "--users seen",
    }
    for name, options in baselines.items():
        out = f"profiles/{name}.jsonl"
        e.generate("profiles/p-dpo", out, recipe, f"--baseline {name} {options}")
    for other in OPPONENTS:
        e.judge("profiles/p-dpo.jsonl", f"profiles/{other}.jsonl", f"oracle:{{w}}/{data}", f"profiles/judged/{other}")
    e.accuracy("profiles/p-dpo", data, "profiles/accuracy/p-dpo")
    return e


def table2() -> Experiment:
    """Section 5.3: a crowd of 1,500 with text, against vanilla DPO with text and the chosen responses."""
    e = Experiment("table2")
    for seed in CROWD_SEEDS:
        judge_crowd(e, "demo-crowd", crowd_folder(seed), CROWD_MODELS, f"--seed {seed}")
    return e


def crowd_folder(seed: int) -> str:
    return f"crowd/seed-{seed}"


def table2_paper() -> Experiment:
    """The same with the paper's soft prompts."""
    e = Experiment("table2_paper")
    judge_crowd(e, "demo-crowd-paper", "crowd-paper", PAPER_MODELS)
    return e


def judge_crowd(e: Experiment, recipe: str, at: str, models: Mapping[str, str], seed: str = "") -> None:
    """Train models on a crowd; judge them against the one called vanilla and against the chosen responses."""
    data = f"{at}/data"
    e.prep("demo-crowd", data, f"--recipe {recipe} {seed}")
    for name, options in models.items():
        e.train(data, f"{at}/{name}", recipe, f"{options} {seed}")
        e.generate(f"{at}/{name}", f"{at}/{name}.jsonl", recipe, f"--prompts own {seed}")
        e.accuracy(f"{at}/{name}", data, f"{at}/accuracy/{name}")
    e.generate(f"{at}/vanilla", f"{at}/chosen.jsonl", recipe, "--prompts own --baseline chosen")
    for name in models:
        others = ["chosen"] if name == "vanilla" else ["vanilla", "chosen"]
        for other in others:
            e.judge(f"{at}/{name}.jsonl", f"{at}/{other}.jsonl", f"oracle:{{w}}/{data}", f"{at}/judged/{name}-{other}")


def rewards() -> Experiment:
    """P-RM against RM: accuracy on held-out comparisons, and best of 8 by reward."""
    e = Experiment("rewards")
    for folder, family, steps in (("profiles", "profiles", ""), ("crowd-paper", "crowd", "--max-steps 250")):
        for name, options in {"rm": VANILLA, "p-rm": ""}.items():
            run, data = f"{folder}/{name}", f"{folder}/data"
            e.train(data, run, RECIPES[family], f"--objective rm {options} {steps}")
            e.accuracy(run, data, f"{folder}/accuracy/{name}")
    best = "profiles/best-of-8.jsonl"
    e.add(
        f"generate {{w}}/profiles/vanilla --recipe demo-profiles --users seen --best-of 8 --reward {{w}}/profiles/p-rm"
        f" --out {{w}}/{best}",
        best,
        "profiles/vanilla/results.json",
        "profiles/p-rm/results.json",
    )
    e.judge(best, "profiles/vanilla.jsonl", "oracle:{w}/profiles/data", "profiles/judged/best-of-8")
    return e


def against_reward() -> Experiment:
    """Equation 3: policies optimized against P-RM and the best of 8 by it, beside P-DPO after as many steps."""
    e = Experiment("against_reward")
    for family, (users, size, prompts, names) in REWARDED.items():
        recipe, data, at = RECIPES[family], f"rounds/{family}/data", f"rounds/{family}"
        e.prep(f"demo-{family}", data, f"--recipe {recipe} {size}")
        reward = e.train(data, f"{at}/p-rm", recipe, f"{users} --objective rm --max-steps 200")
        e.accuracy(f"{at}/p-rm", data, f"{at}/accuracy/p-rm")
        e.train(data, f"{at}/p-dpo", recipe, f"{users} {EIGHTY}")
        trained = [name for name in names if name != BEST]
        for name in trained:
            options = f"{users} {AGAINST_REWARD[name]}"
            e.train(data, f"{at}/{name}", recipe, f"{options} --reward {{w}}/{at}/p-rm", reward)
        for name in ("p-dpo", *trained):
            e.generate(f"{at}/{name}", f"{at}/{name}.jsonl", recipe, f"--users seen {prompts}")
        if BEST in names:
            options = f"--users seen {prompts} --best-of 8 --reward {{w}}/{at}/p-rm"
            e.generate(f"{at}/p-dpo", f"{at}/{BEST}.jsonl", recipe, options)
        for name in names:
            for judge, known in (("oracle", f"oracle:{{w}}/{data}"), ("p-rm", f"reward:{{w}}/{at}/p-rm")):
                e.judge(f"{at}/{name}.jsonl", f"{at}/p-dpo.jsonl", known, f"{at}/judged/{name}-{judge}")
    return e


def ablations() -> Experiment:
    """Ablations of section 5.1 on the demo, with fewer steps."""
    e = Experiment("ablations")
    e.prep("demo", "ablations/data", "--recipe demo")
    e.prep("demo", "ablations/data-40", "--recipe demo --users 40 --comparisons 75")
    for key, values in ABLATIONS.items():
        for value, options in values.items():
            run, forty = ablation(key, value), options == "40"
            if run not in (Path(step.done).stem for step in e.steps):
                data = "ablations/data-40" if forty else "ablations/data"
                folder = f"ablations/{run}"
                e.train(data, folder, "demo", f"--max-steps 80 {'' if forty else options}")
                e.generate(folder, f"ablations/{run}.jsonl", "demo", "--users all")
    return e


def ablation(key: str, value: str) -> str:
    """Return the run that shows `key` at `value`; one run has every default."""
    return f"{key}-{value}" if ABLATIONS[key][value] else "default"


def sweeps() -> Experiment:
    """The same ablations as sweep recipes on Ray Tune, at the demo's full length."""
    e = Experiment("sweeps")
    data = e.prep("demo", "ablations/data", "--recipe demo")
    for name in SWEEPS:
        command = f"sweep --recipe sweep-{name} --set dataset={{w}}/ablations/data --out {{w}}/sweeps/{name}"
        e.add(command, f"sweeps/{name}/best.yaml", data)
    return e


def few_choices() -> Experiment:
    """Users with few and noisy choices: a crowd of 60 with text, 54 of them in training."""
    e = Experiment("few_choices")
    for noise in NOISE:
        for comparisons in FEW:
            folder = few_folder(noise, comparisons)
            options = f"--users 60 --comparisons {comparisons}" + (f" --noise {noise}" if noise else "")
            e.prep("demo-crowd", f"{folder}/data", f"--recipe demo-crowd {options}")
            for name, (recipe, settings) in FEW_MODELS.items():
                run = f"{folder}/{name}"
                e.train(f"{folder}/data", run, recipe, settings)
                e.accuracy(run, f"{folder}/data", f"{folder}/accuracy-{name}")
    return e


def few_folder(noise: float, comparisons: int) -> str:
    """The folder of the data and runs with so much noise and so many comparisons per user."""
    return f"few/noise-{noise}/comparisons-{comparisons}"


EXPERIMENTS = {
    e.name: e
    for e in (
        table1(),
        table2(),
        table2_paper(),
        rewards(),
        against_reward(),
        figure3(),
        ablations(),
        sweeps(),
        few_choices(),
    )
}


def command_line(step: Step, work: Path) -> list[str]:
    return [part.replace("{w}", str(work)) for part in step.command.split()]
