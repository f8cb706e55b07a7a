"""`prlhf judge --checkpoint RUN --few-shot 4,8`: new people, predicted after k of their choices.

Each unseen user of a data set is learned from k choices (learn.py), with the language model as it is, and other choices
of the same user are ranked by the margins of the model that reads them as this user. Beside it stand the generic user
and two controls: another user's choices, and the user's own with the labels turned around. Baselines learn from the
same choices (beside.py). Nothing is written into the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prlhf.adapt.apart import gains, verdict
from prlhf.adapt.beside import BESIDE
from prlhf.adapt.learn import Posterior, posterior_of
from prlhf.adapt.newcomers import Evaluation, others, people_of, that_fit
from prlhf.adapt.prior import prior_for
from prlhf.adapt.run import tables_of
from prlhf.adapt.slopes import margins_and_slopes, margins_of
from prlhf.config import JudgeConfig
from prlhf.config.judge import FEW_SHOT
from prlhf.dataset import read_prepared
from prlhf.folders import claim, replacing
from prlhf.judge.accuracy import USED, own_data
from prlhf.judge.judges import not_used
from prlhf.judge.statistics import mean_with_interval
from prlhf.model.checkpoint import model_folder
from prlhf.model.rewards import load_rewards
from prlhf.model.user_fits import Choices
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress
from prlhf.results import FewShotAccuracy


def judge_few_shot(
    run: Path, dataset: Path | None, config: JudgeConfig, progress: Progress = SILENT
) -> FewShotAccuracy:
    """How well `run` ranks choices of the unseen users of `dataset` after some of their choices; writes results.json.

    Args:
        run: a finished run.
        dataset: a prepared data set; None for the one that the run was trained on.
        config: how many choices, where to write, and how to read the run.
        progress: receives the steps and the warnings.

    Raises:
        PrlhfError: a setting is not used, or the run or the data cannot be read.
    """
    for key in config.given():
        if key not in USED | FEW_SHOT:
            raise not_used(config, key, "few_shot", "leave it out")
    counts, names = config.shots(), config.baselines()
    own = own_data(run)
    claim(config.out, "judgement", inputs=(run, dataset or own))
    trained, rewards = load_rewards(
        run, config.device, config.model, config.trust_remote_code, progress, [], config.precision
    )
    rewards.model.requires_grad_(False)
    people = people_of(
        that_fit(trained, read_prepared(dataset or own), config.skip_long, progress), counts, config.seed
    )
    prior, _ = prior_for(model_folder(run), tables_of(model_folder(run)), trained, rewards, progress)
    test = Evaluation(people, trained, rewards, prior, own, config.seed, progress)
    results = {
        "run": str(run),
        "dataset": str(dataset or own),
        "seed": config.seed,
        "users": len(people),
        "comparisons": len(test.tested),
        "by_choices": _curve(test, counts, {name: BESIDE[name](test) for name in names}, config),
    }
    with replacing(config.out, "judgement") as folder:
        (folder / "results.json").write_text(json_text(results, indent=2) + "\n", encoding="utf-8")
    return FewShotAccuracy.model_validate(results | {"out": config.out})


def _curve(
    test: Evaluation, counts: Sequence[int], beside: Mapping[str, Callable[[int], Tensor]], config: JudgeConfig
) -> list[dict[str, Any]]:
    """The accuracies for each number of choices."""
    rows = test.prior.center.repeat(len(test.known), 1)
    test.progress.start("reading choices", len(test.known))
    try:
        at_center = margins_and_slopes(test.rewards, test.known, rows, test.prior.loadings, test.progress)
        generic = _margins(test, torch.zeros(len(test.people), test.prior.loadings.shape[1]))
        return [_at(test, count, at_center, generic, beside, config) for count in counts]
    finally:
        test.progress.finish()


def _at(
    test: Evaluation,
    count: int,
    at_center: tuple[Tensor, Tensor],
    generic: Tensor,
    beside: Mapping[str, Callable[[int], Tensor]],
    config: JudgeConfig,
) -> dict[str, Any]:
    choices, own = _learned(test, count, 1, at_center)
    found = {
        "generic": generic,
        "adapted": _margins(test, own.modes),
        "shuffled": _margins(test, own.modes[others(len(test.people), test.seed)]),
        "flipped": _margins(test, _learned(test, count, -1, at_center)[1].modes),
    }
    found |= {name: margins(count) for name, margins in beside.items()}
    right = {name: _by_person(test, (1 + margins.sign()) / 2) for name, margins in found.items()}
    turned = _by_person(test, (found["adapted"].sign() != found["flipped"].sign()).double())
    verdicts = [verdict(gain) for gain in gains(choices, own).tolist()]

    def rate(values: Tensor) -> dict[str, float]:
        return mean_with_interval(values.numpy().astype(np.float64), config.bootstrap, config.seed)

    return {
        "choices": min(count, max(len(person.known) for person in test.people)),
        "readings": {name: rate(values) for name, values in right.items()},
        "gain": rate(right["adapted"] - right["generic"]),
        "turned_over": rate(turned),
        "told_apart": {name: verdicts.count(name) for name in ("yes", "no", "unsure")},
    }


def _learned(test: Evaluation, count: int, sign: int, at_center: tuple[Tensor, Tensor]) -> tuple[Choices, Posterior]:
    """What is learned from the first `count` choices of each person, with labels as they are or turned (-1)."""
    kept = test.first(count)
    users, encoded = test.learners[kept], list(compress(test.known, kept.tolist()))
    margins, slopes = (sign * values[kept] for values in at_center)
    choices = Choices(users, slopes, margins, len(test.people))

    def read(some: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        rows = test.prior.center + at.float() @ test.prior.loadings.T
        found = margins_and_slopes(test.rewards, [encoded[i] for i in some.tolist()], rows, test.prior.loadings)
        return sign * found[0], sign * found[1]

    return choices, posterior_of(choices, read)


def _margins(test: Evaluation, modes: Tensor) -> Tensor:
    """The margins [t] of all tested choices, read as people at `modes` [p, c]."""
    rows = test.prior.center + modes.float() @ test.prior.loadings.T
    return margins_of(test.rewards, test.tested, rows[test.owners])


def _by_person(test: Evaluation, values: Tensor) -> Tensor:
    """The mean [p] of `values` [t] over each person's tested choices."""
    total = torch.zeros(len(test.people)).double().index_add_(0, test.owners, values.double())
    return total / torch.bincount(test.owners)
