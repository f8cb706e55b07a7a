"""One trial: a training run, continued if an earlier try stopped, then its responses, judged; and what trials share.

Trials start at the same time, so the base's log-probs, and the responses that all trials are compared with, are
computed once before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from prlhf.config import ClusterConfig, GenerateConfig, TrainConfig
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.run import generate
from prlhf.judge.run import judge_responses
from prlhf.model.checkpoint import Policy, build_policy
from prlhf.model.encoding import Encoded
from prlhf.model.rewards import engine_of
from prlhf.progress import SILENT, Progress
from prlhf.sweep.settings import Settings
from prlhf.train.batches import batches_of, step_count
from prlhf.train.encode import encode
from prlhf.train.loop import Report
from prlhf.train.on_ray import train_on_ray
from prlhf.train.run import reference_of, train, with_base
from prlhf.train.user_start import states_of

BASE = "base.jsonl"  # in the sweep's folder: the base's responses, with which all trials are compared

# The keys on which the comparisons of a run, and the base's log-probs of them, depend. Trials may differ in others.
BASES = ("dataset", "model", "trust_remote_code", "device", "precision")
BUDGETS = ("user_tokens", "user_text", "max_tokens", "max_prompt_tokens", "skip_long", "template_options", "eval_limit")
ORDERS = ("seed", "batch_size", "accumulation", "max_steps", "epochs", "group_by_prompt")


def run_trial(settings: Settings, cluster: ClusterConfig, out: Path, report: Report | None = None) -> dict[str, Any]:
    """Train into `settings.train.out`, and judge if the settings say so; returns the metrics by name.

    Args:
        settings: of the trial.
        cluster: where it runs.
        out: the folder of the sweep.
        report: receives the metrics of each evaluation.
    """
    results = _train(settings, cluster, report)
    scores = results.pop("eval", None) or {}
    reference = results.pop("reference", None) or {}
    results |= {f"eval/{name}": value for name, value in scores.items() if isinstance(value, float)}
    results |= {f"reference_{name}": count for name, count in reference.items()}
    if settings.judge:
        results |= _judge(settings, out)
    return as_json(results)


def _train(settings: Settings, cluster: ClusterConfig, report: Report | None) -> dict[str, Any]:
    config = settings.train
    resume = (config.folder / "recipe.yaml").exists()
    if not cluster.workers:
        return train(config, resume, SILENT, report)
    return train_on_ray(config, cluster, resume, SILENT, report)


def _judge(settings: Settings, out: Path) -> dict[str, Any]:
    """Write responses to the held-out prompts with the trained model, and compare them with those of the sweep."""
    assert settings.generate
    assert settings.judge
    folder = settings.train.folder
    written = settings.generate.model_copy(update={"out": folder / "responses.jsonl"})
    generate(folder, written, SILENT)
    against = out / BASE if settings.against == "base" else Path(settings.against)
    judged = judge_responses(
        folder / "responses.jsonl", against, settings.judge.model_copy(update={"out": folder / "judged"}), SILENT
    )
    rate = judged.per_sample["tie_half"]
    return {
        "judge/winrate": rate.rate,  # of samples; a tie is half a win
        "judge/winrate_low": rate.low,
        "judge/winrate_high": rate.high,
        "judge/winrate_by_user": judged.over_users["tie_half"]["mean"],  # each user has the same weight
        "judge/ties": judged.ties / judged.n_samples,
    }


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The result as JSON returns it, so that resumed and uninterrupted sweeps report the same."""
    plain = to_json(
        result, inf_nan_mode="null", fallback=lambda value: value.item() if hasattr(value, "item") else str(value)
    )
    return from_json(plain)  # type: ignore[no-any-return]


# ---- what trials share ----


def precompute(
    trials: list[Settings], against: Settings | None, out: Path, workers: bool = False, progress: Progress = SILENT
) -> dict[str, int]:
    """Compute once what all `trials` need; returns counts of what was done.

    Args:
        trials: the settings of the trials, as far as they are known.
        against: settings with which the base writes its responses; None if trials are not compared with it.
        out: the folder of the sweep.
        workers: whether each trial has several workers, which look up all of their pairs before they begin.
        progress: receives the steps.
    """
    counts = fill_reference([settings.train for settings in trials], workers, progress)
    fill_states([settings.train for settings in trials], progress)
    if against:
        data = read_prepared(Path(against.train.dataset))
        counts["base_responses"] = write_base(
            against.model_copy(update={"train": with_base(against.train, data)}), out, progress
        )
    return counts


def write_base(settings: Settings, out: Path, progress: Progress = SILENT) -> int:
    """Write the base's responses to the trials' prompts into `out`/base.jsonl; returns how many are new."""
    assert settings.generate
    config: GenerateConfig = settings.generate.model_copy(
        update={
            "out": out / BASE,
            "baseline": "base",
            "model": settings.train.model,
            "dataset": settings.generate.dataset or settings.train.dataset,
            "users": "generic",
            "best_of": 1,
            "reward": None,
        }
    )
    return int(generate(None, config, progress)["new"])


def fill_reference(
    trials: Iterable[TrainConfig], everything: bool = False, progress: Progress = SILENT
) -> dict[str, int]:
    """Put the base's log-probs that `trials` will look up into the reference cache; with `everything`, all of them.

    Returns the number of (prompt, response) pairs that were `computed`, and of those that were `cached` before.
    """
    wanted = [config for config in trials if config.objective == "dpo" and config.reference_cache]
    counts = {"computed": 0, "cached": 0}
    for alike in _grouped(wanted, BASES):
        data = read_prepared(Path(alike[0].dataset))
        policy = _first_that_builds(alike, data)
        if policy is None:
            continue
        first = policy.config
        engine = engine_of(policy, progress)
        reference = reference_of(engine, first, progress)
        for group in _grouped(alike, (*BUDGETS, *ORDERS)):
            needed = _needed(replace(policy, config=with_base(group[0], data)), data, everything)
            reference.fill(needed, group[0].batch_size, progress)
        counts = {name: counts[name] + getattr(reference, name) for name in counts}
    return counts


def fill_states(trials: Iterable[TrainConfig], progress: Progress = SILENT) -> int:
    """Put the base's hidden states, from which users start in `trials`, into their cache; returns how many are new."""
    wanted, computed = [config for config in trials if config.user_init == "choices" and config.reference_cache], 0
    for alike in _grouped(wanted, BASES):
        data = read_prepared(Path(alike[0].dataset))
        policy = _first_that_builds(alike, data)
        if policy is None:
            continue
        states = states_of(engine_of(policy, progress), policy.config, progress)
        for group in _grouped(alike, BUDGETS):
            train_set, _, _ = encode(replace(policy, config=with_base(group[0], data)), data)
            states.fill(train_set.encoded, group[0].batch_size, progress)
        computed += states.computed
    return computed


def _first_that_builds(configs: list[TrainConfig], data: Prepared) -> Policy | None:
    """A policy on the base that `configs` share; None if none can be built, which their trials will report."""
    for config in configs:
        with suppress(PrlhfError):
            return build_policy(with_base(config, data), data.user_ids, {})
    return None


def _grouped(configs: list[TrainConfig], keys: Iterable[str]) -> list[list[TrainConfig]]:
    """The configs in groups that are equal in `keys`, in their order."""
    groups: dict[str, list[TrainConfig]] = {}
    for config in configs:
        values = config.model_dump(mode="json", include=set(keys))
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(config)
    return list(groups.values())


def _needed(policy: Policy, data: Prepared, everything: bool) -> list[Encoded]:
    """The comparisons that a run will see: all, or if it ends within its first epoch, those before its end."""
    config = policy.config
    train_set, held_out, _ = encode(policy, data)
    seen = step_count(config, len(train_set))
    everything = everything or config.reference_first or config.full_finetune
    if everything or seen * config.accumulation * config.batch_size >= len(train_set):
        return [*train_set.encoded, *held_out.encoded]
    rows = [row for batches in islice(batches_of(train_set, config), seen) for batch in batches for row in batch]
    return [*rows, *held_out.encoded]
