"""The experiments on real text and their arms, as data. To add an arm is to add an entry.

Raw data are read from folders NAME under `--raw`, in the layouts of the published data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VANILLA = "--user-model uniform --user-tokens 0"
SOFT = "--user-model individual --user-tokens 10 --user-lr 1e-2"


@dataclass(frozen=True)
class Arm:
    """One way to serve the users: a run, or a base model without training (`baseline`)."""

    name: str
    about: str
    train: str = ""  # options of `prlhf train`
    baseline: str = ""  # of `prlhf generate`, in place of a run
    data: str = "data"  # which of the experiment's data sets
    base: str = ""  # the arm whose model is the base, in place of the language model
    users: str = "all"  # for whom it writes
    scored: bool = True  # whether it ranks held-out comparisons
    writes: bool = True  # whether it writes


@dataclass(frozen=True)
class Experiment:
    """Arms on the same data, with what they share."""

    name: str
    data: Mapping[str, str]  # name -> arguments of `prlhf prep`; {raw} is the folder of the raw data
    train: str  # options of `prlhf train` of all arms
    generate: str  # of `prlhf generate`; {data} is the folder of the first data set
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    title: str = ""
    about: str = ""
    limit: int = 80  # held-out comparisons per user that are scored
    rules: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # user -> measure, and +1 for more of it
    dimensions: Mapping[str, tuple[str, str, str]] = field(
        default_factory=dict
    )  # measure -> name, users for less, more
    shown: tuple[str, ...] = ()  # the arms whose texts are shown: the first that has written

    def arm(self, name: str) -> Arm:
        """The arm called `name`. Raises KeyError."""
        return {arm.name: arm for arm in self.arms}[name]


BASE = Arm("base", "the base model", baseline="base", scored=False, users="generic")
ORACLE = Arm("oracle", "the base, told each user's preference in words", baseline="oracle", users="seen")
COMMON = (
    "--batch-size 4 --beta 0.1 --nll 0.5 --lr 3e-4 --warmup-steps 5 --precision bf16 --eval-limit 12 --save-every 40"
)
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
    train=f"{COMMON} {RANK32} --epochs 1 --max-tokens 420",
    generate="--prompts {data}/prompts.jsonl --max-new-tokens 160 --temperature 0.7 --precision bf16",
    arms=(
        BASE,
        ORACLE,
        Arm("soft", "soft prompts", f"{SOFT} --alpha 0.7"),
        Arm("vanilla", "vanilla DPO", VANILLA, users="generic"),
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
    shown=("gates", "soft"),
)
EXPERIMENTS = {each.name: each for each in (PSOUPS_STRONG,)}
