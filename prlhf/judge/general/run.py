"""`prlhf judge --checkpoint RUN --general FILE` as a function."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from prlhf.config import JudgeConfig
from prlhf.config.judge import LOADING
from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError
from prlhf.folders import claim, replacing
from prlhf.generate.readers import Reader
from prlhf.judge.general.costs import costs
from prlhf.judge.general.items import read_general
from prlhf.judge.general.likelihoods import Ids, LogProbs, Scores, scores_of
from prlhf.judge.judges import not_used
from prlhf.model.checkpoint import Policy, kind_of, load_policy, reference_model
from prlhf.model.fitting import Fitting
from prlhf.model.rewards import engine_of
from prlhf.model.user_models import user_model_of
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress
from prlhf.results import GeneralAbility

GENERAL_KEYS = LOADING | frozenset(
    ("general", "general_users", "out", "bootstrap", "seed", "batch_size", "limit", "skip_long")
)  # keys of JudgeConfig that are used

T = TypeVar("T")


def judge_general(run: Path, config: JudgeConfig, progress: Progress = SILENT) -> GeneralAbility:
    """General ability of `run` as users and as the generic user, beside its base; writes results.json.

    Args:
        run: a finished run of a policy.
        config: the file (`general`), where to write, and how to read the run.
        progress: receives the steps and the warnings.

    Raises:
        PrlhfError: a setting is not used, the run or the file cannot be read, or an item does not fit.
    """
    for key in config.given():
        if key not in GENERAL_KEYS:
            raise not_used(config, key, "--general", "leave it out")
    if kind_of(run) != "policy":
        raise PrlhfError(f"{run} is a reward model, which gives texts no probability", "name the run of a policy")
    path = Path(str(config.general)).expanduser()
    all_questions, all_documents = read_general(path)
    questions, documents = sampled(all_questions, config), sampled(all_documents, config)
    claim(config.out, "judgement", inputs=(run,))
    policy = load_policy(
        run, config.device, config.precision, config.model, config.trust_remote_code, progress=progress
    )
    generic, users = Reader(GENERIC, 0, ""), reading_users(policy, config)
    readers = [generic, *users]
    ids, fitting = Ids(policy.encoder()), Fitting(config.skip_long)
    asked = fitting.part("questions", questions, lambda one: [ids.choices(one, reader) for reader in readers])
    texts = fitting.part("texts", documents, lambda one: [ids.windows(one, reader) for reader in readers])
    fitting.check()
    if ids.cut:
        progress.note(f"{ids.cut} readings of choices lost the beginning of their context")
    items = [one for one, _ in asked], [one for one, _ in texts]

    def scored(number: int, run_model: LogProbs) -> Scores:
        """What the reader of this number, or the base, makes of all items."""
        groups = [row[number] for _, row in asked], [row[number] for _, row in texts]
        return scores_of(policy.model, run_model, items, groups, config.batch_size, progress)

    engine = engine_of(policy, progress)
    model = reference_model(policy, run, config.model, config.trust_remote_code)
    own = engine if model is policy.model else engine_of(replace(policy, model=model))
    progress.start("judging", (len(asked) + len(texts)) * (1 + len(readers)))
    try:
        base, *found = scored(0, own.reference), *(scored(number, engine.values) for number in range(len(readers)))
    finally:
        progress.finish()
    results = {
        "run": str(run),
        "general": str(path),
        "base": policy.base.name,
        "seed": config.seed,
        "questions": len(asked),
        "texts": len(texts),
        "left_out": sum(fitting.skipped.values()),
        "chance": sum(1 / len(one.choices) for one, _ in asked) / len(asked) if asked else None,
        **costs(base, found[0], {u.id: one for u, one in zip(users, found[1:], strict=True)}, config),
    }
    with replacing(config.out, "judgement") as folder:
        (folder / "results.json").write_text(json_text(results, indent=2) + "\n", encoding="utf-8")
    return GeneralAbility.model_validate(results | {"out": config.out})


def sampled(items: Sequence[T], config: JudgeConfig) -> list[T]:
    """All items, or `limit` of them, drawn by the seed."""
    if config.limit is None or config.limit >= len(items):
        return list(items)
    return random.Random(f"{config.seed}-general").sample(list(items), config.limit)


def reading_users(policy: Policy, config: JudgeConfig) -> list[Reader]:
    """At most `general_users` users of the run, drawn by the seed; none if the run does not tell users apart."""
    settings, texts, known = policy.config, policy.user_texts, policy.index_of()
    if not (user_model_of(settings).personal or (settings.user_text and texts)):
        return []
    names = random.Random(f"{config.seed}-users").sample(list(known), min(config.general_users, len(known)))
    return [Reader(user, known[user], texts.get(user, "")) for user in names]
