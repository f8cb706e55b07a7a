"""The experiments on real text and their arms, as data. To add an arm is to add an entry.

Raw data are read from folders NAME under `--raw`, in the layouts of the published data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

VANILLA = "--user-model uniform --user-tokens 0"
GATES = "--user-model individual --user-in adapter"
HALF = "--max-steps 240"  # of 480 steps
SOFT = "--user-model individual --user-tokens 10 --user-lr 1e-2"


@dataclass(frozen=True)
class Arm:
    """One way to serve the users: a run, or a base model without training (`baseline`)."""

    name: str
    about: str
    train: str = ""  # options of `prlhf train`
    baseline: str = ""  # of `prlhf generate`, in place of a run
    data: str = "data"  # which of the experiment's data sets
    vanilla: str = "vanilla"  # the arm without users that it is compared with
    base: str = ""  # the arm whose model is the base, in place of the language model
    reward: str = ""  # the arm that scores what this one writes during its training
    users: str = "all"  # for whom it writes
    scored: bool = True  # whether it ranks held-out comparisons
    writes: bool = True  # whether it writes
    adapts: bool = False  # whether it learns the experiment's newcomers


@dataclass(frozen=True)
class Experiment:
    """Arms on the same data, with what they share."""

    name: str
    data: Mapping[str, str]  # name -> arguments of `prlhf prep`; {raw} is the folder of the raw data
    train: str  # options of `prlhf train` of all arms
    generate: str  # of `prlhf generate`; {data} is the folder of the data set `data`
    arms: tuple[Arm, ...]
    max_tokens: int  # of a comparison: longer responses are cut
    precision: str = "bf16"  # of all models; on a CPU without bf16, fp32 is faster
    seeds: tuple[int, ...] = (0, 1, 2)
    title: str = ""
    about: str = ""
    limit: int = 80  # held-out comparisons per user that are scored
    rules: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # user -> measure, and +1 for more of it
    dimensions: Mapping[str, tuple[str, str, str]] = field(
        default_factory=dict
    )  # measure -> name, users for less, more
    newcomers: str = ""  # of newcomers.py, after the data set and where to write: people who were in no training
    shots: str = "4,8"  # how many choices of theirs are learned from
    tastes: str = ""  # file of the users' tastes among the raw data, for judging only
    shown: tuple[str, ...] = ()  # the arms whose texts are shown: the first that has written
    expects: bool = True  # whether criteria.py is about the arms shown
    beside: str = "vanilla DPO"  # what arms are compared with (`Arm.vanilla`)

    def arm(self, name: str) -> Arm:
        """The arm called `name`. Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]


BASE = Arm("base", "the base model", baseline="base", scored=False, users="generic")
ORACLE = Arm("oracle", "the base, told each user's preference in words", baseline="oracle", users="seen")
COMMON = "--batch-size 4 --lr 3e-4 --warmup-steps 5 --eval-limit 12 --save-every 40"
USERS = ("soft", "gates")  # the arms with a user model
RANK32 = "--lora-r 32 --lora-alpha 64"

PSOUPS_STRONG = Experiment(
    name="psoups-strong",
    title="Six users of P-SOUPS' format",
    about="Two users for each of three dimensions: letters per word, words, warm words per word; one likes more of it, "
    "one less. Raw data in the layout of P-SOUPS, real prompts and responses (not part of the package); of eight "
    "responses to a prompt each user chose the best over the worst by their rule. 1,918 comparisons, one epoch of 480 "
    "steps; 80 held-out comparisons per user, of other prompts; 50 Koala prompts to write for, at temperature 0.7 "
    "and 160 tokens at most (3 of them also in training).",
    data={
        "data": "psoups --source {raw}/psoups-strong --eval-fraction 0.325",
        "told": "psoups --source {raw}/psoups-strong --eval-fraction 0.325 --preference-text",
    },
    train=f"{COMMON} {RANK32} --lora-dropout 0 --epochs 1",
    max_tokens=420,
    generate="--prompts {data}/prompts.jsonl --max-new-tokens 160 --temperature 0.7",
    arms=(
        BASE,
        ORACLE,
        Arm("gates", "gates", f"{GATES} --alpha 0.7", adapts=True),
        Arm(
            "gates-half",
            "gates, half of the comparisons",
            f"{GATES} --alpha 0.7 {HALF} --max-tokens 8192",
            vanilla="vanilla-half",
        ),
        Arm(
            "gates-half-grouped",
            "gates, half of the comparisons, all users' of a prompt together, fp32",
            f"{GATES} --alpha 0.7 {HALF} --max-tokens 8192 --group-by-prompt",
            vanilla="vanilla-half",
            writes=False,
            adapts=True,
        ),
        Arm("gates-alone", "gates, alpha 1", f"{GATES} --alpha 1"),
        Arm("both", "gates and soft prompts", f"{SOFT} --user-in both --alpha 0.7"),
        Arm("soft", "soft prompts", f"{SOFT} --alpha 0.7"),
        Arm("soft-half", "soft prompts, half of the comparisons", f"{SOFT} --alpha 0.7 {HALF}", vanilla="vanilla-half"),
        Arm("vanilla", "vanilla DPO", VANILLA, users="generic"),
        Arm("vanilla-half", "vanilla DPO, half of the comparisons", f"{VANILLA} {HALF}", users="generic"),
        Arm("per-user", "one adapter per user", "--per-user", users="seen"),
        Arm("vanilla-told", "vanilla DPO, told each user's preference in words", VANILLA, data="told", users="seen"),
    ),
    rules={
        "P1A": ("letters", -1),
        "P1B": ("letters", 1),
        "P2A": ("words", -1),
        "P2B": ("words", 1),
        "P3A": ("warm", 1),
        "P3B": ("warm", -1),
    },
    dimensions={
        "letters": ("letters per word", "P1A", "P1B"),
        "words": ("words", "P2A", "P2B"),
        "warm": ("warm words per word", "P3B", "P3A"),
    },
    shown=("gates", "gates-half", "soft"),
    newcomers="--tested 16",
    shots="1,2,4,8,16,32",
)
PSOUPS = replace(
    PSOUPS_STRONG,
    name="psoups",
    title="The same users, who choose between responses that hardly differ",
    about="The layout and the rules of the six users above, other choices: two responses per prompt as they came, of "
    "which a rule about letters or warm words prefers one by little. What an adapter of one's own learns is the limit.",
    data={"data": "psoups --source {raw}/psoups --eval-fraction 0.2"},
    train=f"{COMMON} {RANK32} --epochs 1",
    max_tokens=480,
    arms=tuple(replace(arm, writes=False) for arm in PSOUPS_STRONG.arms if arm.name in ("vanilla", "per-user", *USERS)),
    seeds=(0,),
    dimensions={},
    newcomers="",
)

ROUNDS = replace(
    PSOUPS_STRONG,
    name="rounds",
    title="The same six users against a reward model",
    about="A reward model of 160 steps (P-RM, gates) scores what the policy writes, as each user: three rounds of 36 "
    "prompts with 4 candidates, and 16 steps on them and on as many comparisons of the data, beside P-DPO in as many "
    "steps on the data alone. 20 Koala prompts to write for, at temperature 0.7 and 96 tokens at most. What is written "
    "is measured by the rules that made the choices, not by the reward model.",
    data={"data": PSOUPS_STRONG.data["data"]},
    train=f"{COMMON} {RANK32} --lora-dropout 0",
    generate="--prompts {data}/prompts.jsonl --max-prompts 20 --max-new-tokens 96 --temperature 0.7",
    arms=(
        BASE,
        Arm("rm", "the reward model", f"--objective rm {GATES} --alpha 0.7 --max-steps 160", writes=False),
        Arm("offline", "P-DPO on the data", f"{GATES} --alpha 0.7 --max-steps 48"),
        Arm(
            "online",
            "online DPO against the reward model",
            f"{GATES} --alpha 0.7 --objective online-dpo --rounds 3 --round-steps 16 --round-prompts 36 "
            "--candidates 4 --max-new-tokens 96",
            vanilla="offline",
            reward="rm",
        ),
    ),
    seeds=(0,),
    limit=40,
    shown=("online", "offline"),
    newcomers="",
    expects=False,
    beside="P-DPO",
)

SHORT = "--max-steps 160"  # of 322 steps
TLDR = Experiment(
    name="tldr",
    title="Ten users of TL;DR's format, three of whom like it short",
    about="Figure 3 of the paper on real text. The base is a chat model, which does not end what it writes after a "
    "plain `TL;DR:`; so it is first fine-tuned on the chosen responses, as the paper's base was on summaries. "
    "After that, 160 steps of 4 comparisons, half of an epoch.",
    data={"data": "tldr --source {raw}/tldr --simulate length"},
    train=f"{COMMON} {RANK32} --epochs 1",
    max_tokens=440,
    generate="--prompts eval --max-prompts 50 --max-new-tokens 160 --temperature 0.7",
    arms=(
        BASE,
        Arm("sft", "supervised fine-tuning", "--objective sft", scored=False, writes=False),
        Arm("gates", "gates", f"{GATES} --alpha 0.7 {SHORT}", base="sft"),
        Arm("soft", "soft prompts", f"{SOFT} --alpha 0.7 {SHORT}", base="sft"),
        Arm("vanilla", "vanilla DPO", f"{VANILLA} {SHORT}", users="generic", base="sft"),
        Arm("gates-base", "gates, without fine-tuning before", f"{GATES} --alpha 0.7 {SHORT}"),
        Arm("soft-base", "soft prompts, without fine-tuning before", f"{SOFT} --alpha 0.7 {SHORT}"),
    ),
    shown=("gates", "soft"),
)

CLUSTERS = "--user-model cluster --k 10 --user-tokens 10 --user-lr 1e-2 --alpha 0.7"
GATES_K10 = "--user-model cluster --k 10 --user-in adapter --alpha 0.7"
PRISM = Experiment(
    name="prism",
    title="Participants of PRISM's format, with text about them",
    about="87 seen and 29 unseen users with a text about each; ten clusters (the paper's section 5.3) against vanilla "
    "DPO with the same text, and the reward models. 80 steps of 4 comparisons, a quarter of an epoch, "
    "in which a seen user is met four times, too few to distinguish them; two held-out comparisons per user. In fp32.",
    data={"data": "prism --source {raw}/prism"},
    train=f"{COMMON} {RANK32} --max-steps 80 --max-prompt-tokens 320",
    max_tokens=512,
    generate="",
    precision="fp32",
    limit=2,
    arms=(
        Arm("gates-k10", "gates, ten clusters", GATES_K10, writes=False),
        Arm("soft-k10", "soft prompts, ten clusters", CLUSTERS, writes=False),
        Arm("vanilla", "vanilla DPO", VANILLA, writes=False),
        Arm("rm-gates-k10", "reward model, gates, ten clusters", f"--objective rm {GATES_K10}", writes=False),
        Arm("rm-soft-k10", "reward model, soft prompts, ten clusters", f"--objective rm {CLUSTERS}", writes=False),
        Arm("rm-vanilla", "reward model without users", f"--objective rm {VANILLA}", writes=False),
    ),
)

CROWD = Experiment(
    name="crowd",
    title="A crowd of 60 users with few and noisy choices",
    about="60 users with 32 noisy choices each; a taste is a direction over three dimensions (log words, letters per "
    "word, the root of warm words per word). Who knows the tastes is right in 90.3 % of choices.",
    data={"data": "{raw}/crowd/seen --split train,test"},
    train=f"{COMMON} {RANK32} --epochs 1",
    max_tokens=420,
    generate="--prompts eval --max-prompts 10 --max-new-tokens 160 --temperature 0.7",
    limit=3,
    arms=(
        BASE,
        Arm("gates", "gates", f"{GATES} --alpha 0.7"),
        Arm("gates-start", "gates, started from choices", f"{GATES} --alpha 0.7 --user-init choices", adapts=True),
        Arm("gates-k10", "gates, ten clusters", GATES_K10),
        Arm("gates-k10-start", "gates, ten clusters, started from choices", f"{GATES_K10} --user-init choices"),
        Arm("soft", "soft prompts", f"{SOFT} --alpha 0.7"),
        Arm("soft-k10", "soft prompts, ten clusters", CLUSTERS),
        Arm("vanilla", "vanilla DPO", VANILLA, users="generic"),
    ),
    newcomers="--given {raw}/crowd/unseen --tested 12",
    tastes="crowd/tastes.json",
)
EXPERIMENTS = {each.name: each for each in (PSOUPS_STRONG, PSOUPS, ROUNDS, TLDR, PRISM, CROWD)}
