"""Which settings are used when. What is given and not used is refused, so that nobody waits for what it would do.

Every key of a stage stands in that stage's table, with the conditions under which it is used (none: always).
tests/test_applies.py fails for a key that is missing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prlhf.errors import PrlhfError


@dataclass(frozen=True)
class Needs:
    """A condition on a config, told by its `key`. `words`: the values of that key for which it holds."""

    key: str
    holds: Callable[[Any], bool]
    words: str


@dataclass(frozen=True)
class Used:
    """When a key is used: if all `needs` hold. Values in `idle` ask for nothing and are accepted anyway."""

    needs: tuple[Needs, ...] = ()
    idle: tuple[Any, ...] = ()

    def unmet(self, config: Any) -> Needs | None:
        """Return the first condition that does not hold under `config`; None where all hold."""
        return next((need for need in self.needs if not need.holds(config)), None)


def one_of(key: str, *values: str) -> Needs:
    """The condition that `key` has one of `values`."""
    return Needs(key, lambda config: getattr(config, key) in values, _either(values))


def _either(values: tuple[str, ...]) -> str:
    return " or ".join(values) if len(values) < 3 else f"one of {', '.join(values)}"


def besides(*datasets: str) -> Needs:
    """The condition that the data set is none of `datasets`; it may be custom data."""
    others = [name for name in KNOWN_DATA if name not in datasets]
    words = f"{', '.join(others)} or custom data"
    return Needs("dataset", lambda config: config.dataset not in datasets, words)


def above_zero(key: str) -> Needs:
    """The condition that the number `key` is positive."""
    return Needs(key, lambda config: getattr(config, key) > 0, "more than 0")


ALWAYS = Used()
KNOWN_DATA = ("demo", "demo-profiles", "demo-crowd", "tldr", "prism", "psoups")
SMOOTHED_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")  # those that read label_smoothing

WITH_USERS = one_of("objective", "dpo", "rm")
DPO = one_of("objective", "dpo")
CLUSTERS = one_of("user_model", "cluster")
TOKENS_OR_HEAD = Needs("user_tokens", lambda config: config.user_tokens > 0 or config.objective == "rm", "more than 0")
ADAPTER = Needs("full_finetune", lambda config: not config.full_finetune, "false")

TRAIN = dict.fromkeys(
    """dataset out model trust_remote_code seed objective full_finetune lr weight_decay schedule warmup_steps epochs
    max_steps batch_size accumulation max_grad_norm max_tokens max_prompt_tokens device precision
    gradient_checkpointing eval_every eval_limit save_every keep_checkpoints report_to skip_long
    template_options""".split(),
    ALWAYS,
) | {
    "user_model": Used((WITH_USERS,), idle=("uniform",)),
    "k": Used((WITH_USERS, CLUSTERS)),
    "user_tokens": Used((WITH_USERS,), idle=(0,)),
    "user_init": Used((WITH_USERS, above_zero("user_tokens"))),
    "cluster_weights": Used((WITH_USERS, CLUSTERS)),
    "cluster_lr": Used((WITH_USERS, CLUSTERS)),
    "user_lr": Used((WITH_USERS, TOKENS_OR_HEAD)),
    "user_text": Used((WITH_USERS,), idle=(False,)),
    "loss": Used((DPO,)),
    "label_smoothing": Used((DPO, one_of("loss", *SMOOTHED_LOSSES)), idle=(0.0,)),
    "alpha": Used((WITH_USERS, one_of("user_model", "individual", "cluster"))),
    "beta": Used((DPO,)),
    "nll": Used((DPO,), idle=(0.0,)),
    "lora_r": Used((ADAPTER,)),
    "lora_alpha": Used((ADAPTER,)),
    "lora_dropout": Used((ADAPTER,), idle=(0.0,)),
    "lora_targets": Used((ADAPTER,)),
    "prefix_tree": Used((WITH_USERS,), idle=(False,)),
    "pack_tokens": Used((WITH_USERS,)),
    "group_by_prompt": Used((WITH_USERS,), idle=(False,)),
    "reference_cache": Used((DPO,), idle=(False,)),
    "reference_first": Used((DPO,), idle=(False,)),
}

WRITES = one_of("baseline", "none", "base", "oracle", "in-context")  # a model writes; `chosen` copies

CUSTOM = Needs("dataset", lambda config: config.dataset not in KNOWN_DATA, "custom data, a path or a hub id")
SIMULATED = Needs("simulate", lambda config: config.dataset != "tldr" or config.simulate == "length", "length")

PREP = (
    dict.fromkeys("dataset out source seed".split(), ALWAYS)
    | {
        "top_users": Used((one_of("dataset", "tldr"),)),
        "simulate": Used((one_of("dataset", "tldr"),)),
        "minority": Used((one_of("dataset", "demo", "tldr"), SIMULATED)),
        "users": Used((one_of("dataset", "demo", "demo-crowd"),)),
        "comparisons": Used((one_of("dataset", "demo", "demo-profiles", "demo-crowd"),)),
        "noise": Used((one_of("dataset", "demo-crowd"),)),
        "reveal": Used((one_of("dataset", "demo-crowd"),)),
        "bad_rows": Used((besides("demo", "demo-profiles", "demo-crowd"),)),
        "eval_fraction": Used((besides("demo", "demo-profiles", "demo-crowd", "tldr"),)),
        "unseen_fraction": Used((one_of("dataset", "prism", "demo-crowd"),)),
        "prefs": Used((one_of("dataset", "prism"),)),
        "judging_users": Used((one_of("dataset", "prism"),)),
        "text": Used((one_of("dataset", "psoups"),)),
    }
    | dict.fromkeys("columns split config revision".split(), Used((CUSTOM,)))
)

A_FILE = Needs("prompts", lambda config: config.prompts not in ("eval", "own", "judging"), "a file")

# best_of and reward: see GenerateConfig.best_of_has_a_choice
GENERATE = dict.fromkeys(
    "prompts out dataset baseline max_prompts seed block shards best_of reward".split(), ALWAYS
) | {
    "users": Used(
        (one_of("baseline", "none", "oracle", "in-context", "chosen"),), idle=("all", "generic", "all,generic")
    ),
    "prompt_column": Used((A_FILE,), idle=("prompt",)),
    "unknown_as_generic": Used((one_of("baseline", "none", "oracle", "in-context"),), idle=(False,)),
    "examples": Used((one_of("baseline", "in-context"),)),
    "skip_long": Used((WRITES,), idle=(False,)),
    "template_options": Used((WRITES,)),
    "model": Used((WRITES,)),
    "trust_remote_code": Used((WRITES,), idle=(False,)),
    "max_new_tokens": Used((WRITES,)),
    "batch_size": Used((WRITES,)),
    "temperature": Used((WRITES,)),
    "top_p": Used((WRITES, above_zero("temperature")), idle=(1.0,)),
    "device": Used((WRITES,)),
    "precision": Used((WRITES,)),
}

ASHA = Needs("asha", lambda config: config.asha, "true")
JUDGED = Needs("metric", lambda config: config.metric.startswith("judge/"), "judge/winrate")
ON_WORKERS = above_zero("workers")

CLUSTER = {
    "workers": ALWAYS,
    "parallel": Used((ON_WORKERS, Needs("workers", lambda config: config.workers > 1, "2 or more")), idle=("ddp",)),
} | dict.fromkeys(
    "gpus_per_worker cpus_per_worker ray_address storage max_failures silence_minutes verbose".split(),
    Used((ON_WORKERS,)),
)  # fmt: skip

SWEEP = dict.fromkeys("space out trials search metric mode asha concurrent".split(), ALWAYS) | {
    "seed": Used((Needs("trials", lambda config: config.trials is not None, "a number"),)),
    "against": Used((JUDGED,), idle=("base",)),
    "grace": Used((ASHA,)),
    "reduction": Used((ASHA,)),
}


def unused(table: Mapping[str, Used], config: Any, values: Mapping[str, Any]) -> dict[str, Needs]:
    """Those keys of `values` that are not used under `config`, each with what it lacks; idle values are left out."""
    rules = {key: table.get(key, ALWAYS) for key in values}
    found = {key: rules[key].unmet(config) for key, value in values.items() if value not in rules[key].idle}
    return {key: need for key, need in found.items() if need}


def refusal(key: str, need: Needs, config: Any, value: Any) -> tuple[str, str]:
    """(message, hint) for a key that is given and not used."""
    return (
        f"{key} = {_shown(value)} is not used with {need.key} = {_shown(getattr(config, need.key))}",
        f"leave {key} out, or set {need.key} to {need.words}",
    )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)


def check_cluster(config: Any, typed: Mapping[str, Any]) -> None:
    """Refuse settings of a cluster that were typed for a run in this process."""
    for key, need in unused(CLUSTER, config, typed).items():
        message, _ = refusal(key, need, config, typed[key])
        raise PrlhfError(message, f"add --workers N, N {need.words}, or leave it out")
