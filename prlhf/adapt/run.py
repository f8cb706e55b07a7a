"""`prlhf adapt` as a function: read choices, learn their users, and write them into the run, or into a new one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prlhf.adapt import apart
from prlhf.adapt.choices import read_choices
from prlhf.adapt.folder import locked
from prlhf.adapt.known import KnownChoice, KnownUser, digest_of, read_choices_of, read_users_of, summary_of
from prlhf.adapt.learn import Posterior, posterior_of
from prlhf.adapt.prior import prior_for
from prlhf.adapt.slopes import margins_and_slopes
from prlhf.adapt.writing import Change, collected, write_prior
from prlhf.choice_store import FILE
from prlhf.config import AdaptConfig, TrainConfig
from prlhf.data.rows import Row
from prlhf.dataset import Comparison, prompt_id
from prlhf.errors import PrlhfError
from prlhf.files import atomic_dir
from prlhf.folders import claim
from prlhf.model.checkpoint import Trained, model_folder, read_about
from prlhf.model.encoding import Encoded
from prlhf.model.fitting import Fitting
from prlhf.model.hub_run import check_own
from prlhf.model.rewards import Rewards, load_rewards
from prlhf.model.user_fits import Choices
from prlhf.model.user_models import first_indices
from prlhf.model.user_prior import UserPrior, stored_rows
from prlhf.model.user_store import read_users
from prlhf.progress import SILENT, Progress

AT_ONCE = 2**11  # choices in memory at a time


@dataclass(frozen=True)
class Learner:
    """Somebody to learn, with their choices, older ones first. `start` [d]: empty for the generic user's row."""

    user_id: str
    user_index: int
    text: str
    new: bool  # whether the run does not know them yet
    start: Tensor
    older: list[KnownChoice]
    further: list[Row]


def adapt_run(run: Path, config: AdaptConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Learn the users of `config.choices` and write them into `run`, or into the new run `config.out`.

    Returns:
        The summary: `users` with what is known of each, `seconds`, and how many choices were read.

    Raises:
        PrlhfError: the run, the file or a row cannot be used, or the run cannot be written.
    """
    if config.out is not None:
        check_new(config.out, run)
    else:
        check_own(run)
    read_about(model_folder(run))
    given = read_choices(config, progress)
    with locked(model_folder(run).parent, progress):
        if config.out is None:
            return _adapt(run, run, given, config, progress)
        with atomic_dir(config.out) as beside:
            shutil.copytree(run, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", f"{FILE}*"))
            return _adapt(run, beside, given, config, progress) | {"run": str(config.out)}


def check_new(out: Path, run: Path) -> None:
    """Check that what is learned of the users of `run` may be written to the new run `out`, without writing.

    Raises:
        PrlhfError: `out` is a run already, or may not be written.
    """
    claim(out, "run", inputs=(run,))
    if out.exists() and any(out.iterdir()):
        raise PrlhfError(f"{out} already holds a run", "choose another --out")


def _adapt(
    loaded: Path, run: Path, given: Mapping[str, list[Row]], config: AdaptConfig, progress: Progress
) -> dict[str, Any]:
    """Load `loaded`, which is `run` or what it was copied from, and change `run`."""
    folder = model_folder(run)
    first = tables_of(folder)
    began = time.perf_counter()
    trained, rewards = load_rewards(
        loaded, config.device, config.model, config.trust_remote_code, progress, list(given)
    )
    there = time.perf_counter()
    rewards.model.requires_grad_(False)
    prior, found = prior_for(folder, first, trained, rewards, progress)
    if found:
        write_prior(folder, prior)
    known = time.perf_counter()
    summaries, read, passes = [], 0, 0
    with collected(folder) as put:
        for people in _lots(learners(folder, first, trained, given)):
            change, some, reads = _learn(trained, rewards, prior, people, config, progress)
            put(change)
            summaries += some
            read += sum(len(person.further) for person in people)
            passes += reads
        done = time.perf_counter()
    seconds = {"load": there - began, "prior": known - there, "learn": done - known}
    return {
        "run": str(run),
        "users": summaries,
        "choices": read,
        "passes": passes,
        "seconds": {name: round(value, 3) for name, value in seconds.items()}
        | {"write": round(time.perf_counter() - done, 3)},
    }


def tables_of(folder: Path) -> dict[str, int]:
    """The tables of a checkpoint that have a row per user, and the user index of each one's first row.

    Raises:
        PrlhfError: it is not a checkpoint, or has no such table.
    """
    config = TrainConfig.saved(read_about(folder)["train"])
    first = first_indices(config, 1)
    if not first:
        raise PrlhfError(
            f"{folder} has nothing of each user's own (user_model = {config.user_model})",
            "train again with prlhf train --user-model individual, or cluster",
        )
    return first


def learners(
    folder: Path, first: Mapping[str, int], trained: Trained[Any], given: Mapping[str, list[Row]]
) -> Iterator[Learner]:
    """Who is learned from the choices `given`; the user indices of those who are new follow the last."""
    index, last = trained.index_of(), read_users(folder, ()).count
    for user, rows in given.items():
        new = user not in index
        last += new
        at = last if new else index[user]
        adapted = {} if new else read_users_of(folder, [at])
        start = adapted[at].start if adapted else torch.empty(0)
        if not new and not adapted:
            start = stored_rows(folder, first, [at])[0]
        older = read_choices_of(folder, at) if adapted else []
        text = next((row.user_text for row in rows), "") if new else trained.user_texts.get(user, "")
        yield Learner(user, at, text, new, start, older, _unknown(rows, older))


def _lots(people: Iterator[Learner]) -> Iterator[list[Learner]]:
    """People with few enough choices together to be in memory at a time, or one person."""
    lot: list[Learner] = []
    count = 0
    for person in people:
        count += len(_all(person))
        if lot and count > AT_ONCE:
            yield lot
            lot, count = [], len(_all(person))
        lot.append(person)
    if lot:
        yield lot


def _unknown(rows: Sequence[Row], older: Sequence[KnownChoice]) -> list[Row]:
    """The rows that are not among the older choices, each once."""
    known = {choice.digest for choice in older}
    found = {digest_of(row.prompt, row.chosen, row.rejected): row for row in rows}
    return [row for digest, row in found.items() if digest not in known]


def _learn(
    trained: Trained[Any],
    rewards: Rewards,
    prior: UserPrior,
    people: Sequence[Learner],
    config: AdaptConfig,
    progress: Progress,
) -> tuple[Change, list[dict[str, Any]], int]:
    """What to write, the summary of each user, and how many choices were read."""
    starts = torch.stack([person.start.float() if len(person.start) else prior.center for person in people])
    encoded, older = _encoded(trained, people, progress)
    owners = torch.tensor([number for number, person in enumerate(people) for _ in _all(person)])
    fresh = (~older).nonzero().squeeze(1)

    def read(numbers: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        rows = starts[owners[numbers]] + at.float() @ prior.loadings.T
        return margins_and_slopes(rewards, [encoded[i] for i in numbers.tolist()], rows, prior.loadings, progress)

    width = prior.loadings.shape[1]
    margins, slopes = torch.zeros(len(owners)).double(), torch.zeros(len(owners), width).double()
    known = [choice for person in people for choice in person.older]
    if known:
        margins[older] = torch.tensor([choice.margin for choice in known]).double()
        slopes[older] = torch.stack([choice.slopes for choice in known])
    progress.start("reading choices", len(fresh))
    try:
        margins[fresh], slopes[fresh] = read(fresh, torch.zeros(len(fresh), width).double())
        choices = Choices(owners, slopes, margins, len(people))
        found = posterior_of(choices, read if config.method == "relinearized" else None)
    finally:
        progress.finish()
    change = _change(people, prior, starts, choices, found)
    summaries = [summary_of(known, who.user_id, who.new) for known, who in zip(change.known, people, strict=True)]
    return change, summaries, len(fresh) + found.passes


def _all(person: Learner) -> list[KnownChoice | Row]:
    return [*person.older, *person.further]


def _encoded(trained: Trained[Any], people: Sequence[Learner], progress: Progress) -> tuple[list[Encoded], Tensor]:
    """All choices in token ids, and which of them [n] are older ones."""
    rows = [
        Comparison(
            f"{person.user_id}, choice {number}", choice.prompt, choice.chosen, choice.rejected,
            person.user_id, person.user_index, person.text, prompt_id(choice.prompt), seen=True,
        )
        for person in people
        for number, choice in enumerate(_all(person), start=1)
    ]  # fmt: skip
    encoder, fitting = trained.encoder(), Fitting(False)
    found = fitting.part("choices", rows, encoder.comparison)
    fitting.check(advice="shorten them")
    encoder.note_cut(progress)
    older = [isinstance(choice, KnownChoice) for person in people for choice in _all(person)]
    return [encoded for _, encoded in found], torch.tensor(older)


def _change(people: Sequence[Learner], prior: UserPrior, starts: Tensor, choices: Choices, found: Posterior) -> Change:
    """What to write of the users that were learned."""
    rows = starts + found.modes.float() @ prior.loadings.T
    gains, left = apart.gains(choices, found), apart.uncertainty(found)
    known, further, at = [], [], 0
    for number, person in enumerate(people):
        known.append(
            KnownUser(
                person.user_index, len(_all(person)), gains[number].item(), left[number].item(),
                person.start, found.modes[number], found.covariances[number],
            )
        )  # fmt: skip
        at += len(person.older)
        for row in person.further:
            choice = KnownChoice(
                row.prompt, row.chosen, row.rejected, choices.margins[at].item(), choices.gradients[at]
            )
            further.append((person.user_index, choice))
            at += 1
    return Change(
        rows={person.user_index: row for person, row in zip(people, rows, strict=True)},
        new={person.user_index: (person.user_id, person.text) for person in people if person.new},
        known=known,
        choices=further,
    )
