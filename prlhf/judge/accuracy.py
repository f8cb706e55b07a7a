"""`prlhf judge --checkpoint`: does the model rank held-out comparisons as their users did?

The same comparisons are read four times: as their own user, if seen in training; as their own user, if unseen (index 0,
with the user's text if any); as the generic user; and as another seen user, drawn at random. The last is a control:
accuracy that remains cannot come from the user's identity.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prlhf.config import JudgeConfig
from prlhf.config.judge import LOADING
from prlhf.dataset import Comparison, gone, is_prepared, read_prepared
from prlhf.errors import PrlhfError
from prlhf.folders import claim, replacing
from prlhf.judge.judges import not_used
from prlhf.judge.statistics import half_tied_rate
from prlhf.model.checkpoint import Trained
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.per_user import trained_on
from prlhf.model.rewards import Scored, accuracy_summary, load_rewards, score
from prlhf.parse import json_text
from prlhf.progress import SILENT, Progress
from prlhf.results import CheckpointAccuracy

USED = LOADING | {"out", "bootstrap", "seed", "batch_size", "dataset", "skip_long"}  # keys of JudgeConfig


def judge_checkpoint(
    run: Path, dataset: Path | None, config: JudgeConfig, progress: Progress = SILENT
) -> CheckpointAccuracy:
    """The accuracy of the (implicit) reward of `run` on the held-out comparisons of `dataset`; writes results.json.

    Args:
        run: a finished run.
        dataset: a prepared data set; None for the one that the run was trained on.
        config: where to write, and how to read the run.
        progress: receives the steps and the warnings.

    Raises:
        PrlhfError: a setting is not used, or the run or the data cannot be read.
    """
    for key in config.given():
        if key not in USED:
            raise not_used(config, key, "--checkpoint", "leave it out")
    dataset = dataset or own_data(run)
    claim(config.out, "judgement", inputs=(run, dataset))
    trained, rewards = load_rewards(
        run, config.device, config.model, config.trust_remote_code, progress, precision=config.precision
    )
    rows, data, skipped = _held_out(trained, dataset, config, progress)

    def read_as(user_indices: list[int]) -> list[Scored]:
        return score(rewards, data, user_indices, config.batch_size, progress)

    own = [row.user_index for row in rows]
    progress.start("judging", 3 * len(rows))
    try:
        as_user, as_generic = read_as(own), read_as([0] * len(rows))
        as_other = read_as(shuffled(own, sorted(trained.index_of().values()), config.seed))
    finally:
        progress.finish()
    ids = [row.user_id for row in rows]
    seen = [i for i, user_index in enumerate(own) if user_index > 0]
    unseen = [i for i, user_index in enumerate(own) if user_index == 0]
    results = {
        "run": str(run),
        "dataset": str(dataset),
        "seed": config.seed,
        "left_out": {"too_long": skipped, "equal": sum(e.chosen == e.rejected for e in data)},
        "readings": {
            "seen": with_interval(ids, as_user, seen, config),
            "unseen": with_interval(ids, as_user, unseen, config),
            "generic": with_interval(ids, as_generic, seen or unseen, config),
            "shuffled": with_interval(ids, as_other, seen if len(trained.user_ids) > 1 else [], config),
        },
        **accuracy_summary(ids, own, as_user, as_generic),
    }
    with replacing(config.out, "judgement") as folder:
        (folder / "results.json").write_text(json_text(results, indent=2) + "\n", encoding="utf-8")
    return CheckpointAccuracy.model_validate(results | {"out": config.out})


def _held_out(
    trained: Trained[Any], dataset: Path, config: JudgeConfig, progress: Progress
) -> tuple[list[Comparison], list[Encoded], int]:
    """The held-out comparisons that fit, with the run's user indices, in token ids too, and the number of the others.

    Raises PrlhfError if there are none, or if some do not fit and `config.skip_long` does not leave them out.
    """
    index_of = trained.index_of()
    rows = [replace(row, user_index=index_of.get(row.user_id, 0)) for row in read_prepared(dataset).eval]
    if not rows:
        raise PrlhfError(f"{dataset} has no held-out comparisons", "prepare it with an eval split")
    encoder, fitting = trained.encoder(), Fitting(config.skip_long)
    found = fitting.part("held-out comparisons", rows, encoder.comparison)
    fitting.check(advice="shorten them")
    (skipped,) = fitting.skipped.values()
    if skipped:
        progress.note(f"{skipped:,} held-out comparisons do not fit and were left out (skip_long)")
    encoder.note_cut(progress)
    return [row for row, _ in found], [encoded for _, encoded in found], skipped


def own_data(run: Path) -> Path:
    """The prepared data set that `run` was trained on. Raises PrlhfError if it is gone."""
    folder = trained_on(run)
    if not is_prepared(Path(folder)):
        raise gone(run, folder)
    return Path(folder)


def shuffled(user_indices: Sequence[int], known: Sequence[int], seed: int) -> list[int]:
    """Replace each seen user by another one of the `known` seen users, uniformly; unseen users (index 0) stay."""
    rng = random.Random(seed)
    if len(known) < 2:
        return list(user_indices)
    place = {user_index: at for at, user_index in enumerate(known)}
    return [0 if i == 0 else known[(place[i] + rng.randrange(1, len(known))) % len(known)] for i in user_indices]


def with_interval(
    ids: Sequence[str], scored: Sequence[Scored], chosen: Sequence[int], config: JudgeConfig
) -> dict[str, float] | None:
    """The accuracy on the comparisons `chosen`, with a 95 % interval clustered by user; None if there are none."""
    outcomes = np.sign([scored[i].margin for i in chosen]).astype(np.int64)
    found = half_tied_rate(outcomes, [ids[i] for i in chosen], config.bootstrap, config.seed)
    return found and found | {"comparisons": float(len(chosen))}
