"""What all trials need and none is to compute for itself: the base's log-probs, and the responses to win against."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from prlhf.config import TrainConfig
from prlhf.dataset import Prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Policy, build_policy
from prlhf.model.encoding import Encoded
from prlhf.model.scoring import engine_of
from prlhf.progress import SILENT, Progress
from prlhf.sweep.settings import Settings
from prlhf.sweep.training import write_base
from prlhf.train.batches import batches_of, step_count
from prlhf.train.encode import encode
from prlhf.train.run import reference_of, with_base

# What the pairs of a run, and the base's log-probs of them, depend on; all other keys share them.
BASES = ("dataset", "model", "trust_remote_code", "device", "precision")
BUDGETS = ("user_tokens", "user_text", "max_tokens", "max_prompt_tokens", "skip_long", "template_options", "eval_limit")
ORDERS = ("seed", "batch_size", "accumulation", "max_steps", "epochs", "group_by_prompt")


def share(
    trials: list[Settings], against: Settings | None, out: Path, workers: bool = False, progress: Progress = SILENT
) -> dict[str, int]:
    """Do it once, before `trials` start at the same time and each does the same. Returns counts of what was done.

    `workers`: whether each trial has several, which look all of their pairs up before they begin.
    """
    counts = fill_reference([settings.train for settings in trials], workers, progress)
    if against:
        data = read_prepared(Path(against.train.dataset))
        counts["base_responses"] = write_base(
            against.model_copy(update={"train": with_base(against.train, data)}), out, progress
        )
    return counts


def fill_reference(
    trials: Iterable[TrainConfig], everything: bool = False, progress: Progress = SILENT
) -> dict[str, int]:
    """Put into the reference cache what `trials` will look for there, and no more unless `everything` is asked for.

    Returns the numbers of pairs of prompt and response that were `computed`, and of those `cached` already.
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


def _first_that_builds(configs: list[TrainConfig], data: Prepared) -> Policy | None:
    """A policy on the base that `configs` have in common. Where none can be built their trials will say why."""
    for config in configs:
        with suppress(PrlhfError):
            return build_policy(with_base(config, data), data.user_ids, {})
    return None


def _grouped(configs: list[TrainConfig], keys: Iterable[str]) -> list[list[TrainConfig]]:
    """Those that agree on `keys` together, in the order in which they come."""
    groups: dict[str, list[TrainConfig]] = {}
    for config in configs:
        values = config.model_dump(mode="json", include=set(keys))
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(config)
    return list(groups.values())


def _needed(policy: Policy, data: Prepared, everything: bool) -> list[Encoded]:
    """The comparisons that a run will see: all of them, or where it ends within its first epoch those up to there."""
    config = policy.config
    train_set, held_out, _ = encode(policy, data)
    seen = step_count(config, len(train_set))
    everything = everything or config.reference_first or config.full_finetune
    if everything or seen * config.accumulation * config.batch_size >= len(train_set):
        return [*train_set.encoded, *held_out.encoded]
    rows = [row for batches in islice(batches_of(train_set, config), seen) for batch in batches for row in batch]
    return [*rows, *held_out.encoded]
