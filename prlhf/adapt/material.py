"""What questions are chosen from: the pairs of a pool as one user, read once, and what is known already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prlhf.adapt.answers import Answers
from prlhf.adapt.choices import read_choices
from prlhf.adapt.folder import locked
from prlhf.adapt.pool import pair_of, read_pool, write_pool, writers
from prlhf.adapt.prior import prior_for
from prlhf.adapt.run import Learner, learners, tables_of
from prlhf.adapt.slopes import margins_and_slopes
from prlhf.config import AdaptConfig
from prlhf.data.rows import Row
from prlhf.dataset import Comparison, prompt_id
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import Trained, kind_of, model_folder
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.rewards import load_rewards
from prlhf.progress import Progress


@dataclass(frozen=True)
class Material:
    """Pairs that can be asked, `rows`, and all that is known of their user.

    `margins` [n] and `slopes` [n, c] at the user's start are those of `rows` and then of the choices that are known:
    `choices` has the number of each, and 1, since the first response is the chosen one.
    """

    rows: Sequence[Row]
    user_text: str
    margins: Tensor
    slopes: Tensor
    choices: Sequence[tuple[int, int]]


def read_material(run: Path, config: AdaptConfig, user: str, answers: Answers, progress: Progress) -> Material:
    """Read or write the pool of `config` for `user`, and read all pairs that have no answer yet.

    Raises:
        PrlhfError: the run or a file cannot be used, or nothing of the pool fits into the model's context.
    """
    folder = model_folder(run)
    first = tables_of(folder)
    given = [] if answers.empty else read_choices(_of_file(config), progress).get(user, [])
    pool = config.pool or config.answers.with_suffix(".pool.jsonl")
    writing = config.prompts is not None and not pool.exists()
    if writing and kind_of(run) == "reward model":
        raise PrlhfError(f"{run} is a reward model, which does not write", "give a file of pairs with --pool")
    pairs = [] if writing else read_pool(pool, config, user, progress)  # before anything is loaded
    others = writers(folder, config.seed) if writing else []
    with locked(folder.parent, progress):
        trained, rewards = load_rewards(
            run, config.device, config.model, config.trust_remote_code, progress, [user, *others]
        )
        rewards.model.requires_grad_(False)
        prior, _ = prior_for(folder, first, trained, rewards, progress)
        (person,) = learners(folder, first, trained, {user: given})
    if writing and config.prompts is not None:
        write_pool(pool, config.prompts, trained, others, config, progress)
        pairs = read_pool(pool, config.model_copy(update={"columns": {}}), user, progress)
    elif config.prompts is not None:
        progress.note(f"the pool is {pool}, which is there already")
    known = {pair_of(row) for row in given} | {pair_of(choice) for choice in person.older}
    rows, encoded = _encoded(trained, person, [row for row in pairs if pair_of(row) not in known], progress)
    start = person.start.float() if len(person.start) else prior.center
    progress.start("reading pairs", len(encoded))
    try:
        margins, slopes = margins_and_slopes(rewards, encoded, start.repeat(len(encoded), 1), prior.loadings, progress)
    finally:
        progress.finish()
    margins = torch.cat([margins, torch.tensor([choice.margin for choice in person.older]).double()])
    slopes = torch.cat([slopes, *(choice.slopes.unsqueeze(0) for choice in person.older)])
    return Material(rows, person.text, margins, slopes, [(number, 1) for number in range(len(rows), len(margins))])


def _of_file(config: AdaptConfig) -> AdaptConfig:
    return config.model_copy(update={"choices": config.answers, "columns": {}, "user": None})


def _encoded(
    trained: Trained[Any], person: Learner, pairs: Sequence[Row], progress: Progress
) -> tuple[list[Row], list[Encoded]]:
    """The pairs that fit, and their token ids, followed by those of the choices that are not known to the run yet."""
    encoder, skipping, strict = trained.encoder(), Fitting(True), Fitting(False)

    def encode(row: Row) -> Encoded:
        return encoder.comparison(
            Comparison(
                row.id, row.prompt, row.chosen, row.rejected, person.user_id, person.user_index, person.text,
                prompt_id(row.prompt), seen=True,
            )
        )  # fmt: skip

    fitting = skipping.part("pairs", pairs, encode)
    skipping.check()
    if skipping.skipped["pairs"]:
        progress.note(f"left out: {skipping.summary()}")
    further = strict.part("choices", person.further, encode)
    strict.check(advice="shorten them")
    encoder.note_cut(progress)
    return [row for row, _ in fitting], [each for _, each in [*fitting, *further]]
