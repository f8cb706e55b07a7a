"""One LoRA adapter per user, a baseline for few users: a run without a user model on each seen user's comparisons.

recipe.yaml        the settings that all runs share
per_user.json      the users, and the data set they come from
users/1 ...        one run per user, with its data in data/
results.json       accuracy per user, written last
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prlhf.config import TrainConfig
from prlhf.dataset import Comparison, Prepared, User, write_prepared
from prlhf.errors import Interrupted, NotFinite, PrlhfError
from prlhf.folders import claim, mark
from prlhf.model.checkpoint import build_policy
from prlhf.model.per_user import PerUser, is_per_user, read_per_user, run_of, write_per_user
from prlhf.model.rewards import mean
from prlhf.progress import SILENT, Progress
from prlhf.train.early_stopping import check_metric
from prlhf.train.encode import encode
from prlhf.train.run import check_data, train, vanilla, with_base
from prlhf.train.run_folder import check_same, data_of, read_results, saved_config, write_recipe, write_results
from prlhf.train.trackers import tracker_names

MAX_USERS = 50  # each costs a run and an adapter: for more users a user model is the better choice


def train_per_user(config: TrainConfig, resume: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
    """Train an adapter for every seen user, one run after another; returns the summary written to results.json.

    The user model of `config` is ignored: an adapter of one user needs neither soft prompt nor text.

    Raises:
        PrlhfError: the input has a fault that the user can fix.
        Interrupted: after Ctrl-C, when a checkpoint is saved.
    """
    if config.user_init == "choices":
        raise PrlhfError("--per-user has no user model that user_init = choices could start", "drop one of the two")
    tracker_names(config.report_to)
    folder = config.folder
    claim(folder, "run", resume)
    data = data_of(config, resume)
    config = with_base(vanilla(config), data)
    whole = str(Path(config.dataset).resolve())
    users = sorted((user for user in data.users if user.seen), key=lambda user: user.user_index)
    if resume:
        check_resumed(folder, config, data)
        if read_per_user(folder).dataset != whole:  # the data were moved or renamed
            write_per_user(folder, PerUser(whole, [user.id for user in users]))
        if (folder / "results.json").exists():
            progress.note(f"{folder} is already finished")
            return read_results(folder)
    else:
        check_per_user(config, data, progress)
        write_recipe(folder, config, data, flags="--per-user ")
        write_per_user(folder, PerUser(whole, [user.id for user in users]))
    results = []
    for user in users:
        progress.note(f"user {user.id}: {user.user_index} of {len(users)}")
        try:
            results.append(_train_one(folder, config, data, user, progress))
        except NotFinite as error:
            raise NotFinite(f"user {user.id}: {error.message}", error.hint) from error
        except Interrupted as error:
            raise Interrupted(
                f"stopped at user {user.user_index} of {len(users)}; continue with: prlhf train --resume --out {folder}"
            ) from error
    summary = summarise_runs(config, [user.id for user in users], results)
    write_results(folder, summary)
    return summary


def check_resumed(folder: Path, config: TrainConfig, data: Prepared) -> None:
    """Raise PrlhfError if `folder` does not hold the run to resume."""
    if not is_per_user(folder):
        raise PrlhfError(f"{folder} holds no adapters per user to resume", "start without --resume, or drop --per-user")
    check_same(config, with_base(saved_config(folder), data), data)


def check_per_user(config: TrainConfig, data: Prepared, progress: Progress) -> None:
    """Raise PrlhfError if settings, base or data have a fault; nothing is written before."""
    count = len(data.user_ids)
    if count > MAX_USERS:
        raise PrlhfError(
            f"{config.dataset} has {count} users; one adapter per user is for at most {MAX_USERS}",
            "use --user-model individual or cluster",
        )
    if config.objective != "dpo":
        raise PrlhfError(f"--per-user trains by dpo, not by objective = {config.objective}", "drop one of the two")
    check_data(config, data, progress)
    for user in filter(lambda user: user.seen, data.users):
        check_metric(config, only(data, user).eval, f" of user {user.id}")
    encode(build_policy(config, data.user_ids, {}), data)


def only(data: Prepared, user: User) -> Prepared:
    """The data set of one user, whose index in it is 1."""

    def own(rows: list[Comparison]) -> list[Comparison]:
        return [replace(row, user_index=1) for row in rows if row.user_id == user.id]

    manifest = {"dataset": data.manifest.get("dataset"), "users": {"seen": 1, "unseen": 0}}
    return Prepared(own(data.train), own(data.eval), [replace(user, user_index=1)], manifest)


def _train_one(folder: Path, config: TrainConfig, data: Prepared, user: User, progress: Progress) -> dict[str, Any]:
    run = run_of(folder, user.user_index)
    mark(run, "run")
    write_prepared(run / "data", only(data, user))
    own = config.model_copy(update={"out": run, "dataset": str(run / "data")})
    return train(own, resume=(run / "recipe.yaml").exists(), progress=progress)


def summarise_runs(config: TrainConfig, users: list[str], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Combine the runs' summaries into one of the same shape; users without held-out comparisons are not in `eval`.

    All means weigh users equally. There is no model for the generic user or for unseen users.
    """
    seconds = sum(one["train_seconds"] for one in results)
    compared = sum(one["comparisons_per_second"] * one["train_seconds"] for one in results)
    summary = {
        "run": str(config.folder),
        "objective": config.objective,
        "dataset": config.dataset,
        "model": config.model,
        "users": len(users),
        "steps": sum(one["steps"] for one in results),
        "loss": mean([one["loss"] for one in results]),
        "train_seconds": seconds,
        "comparisons_per_second": compared / seconds,
    }
    steps = {user: one["best"]["step"] for user, one in zip(users, results, strict=True) if "best" in one}
    if steps:
        summary["best_step_by_user"] = steps
    found = {user: one["eval"] for user, one in zip(users, results, strict=True) if "eval" in one}
    if found:
        accuracy = {user: scores["accuracy_macro"] for user, scores in found.items()}
        margin = {user: scores["margin_mean"] for user, scores in found.items()}
        ranked = sorted(accuracy.values())
        summary["eval"] = {
            "accuracy_macro": mean(ranked),
            "accuracy_seen": mean(ranked),
            "accuracy_unseen": None,
            "accuracy_worst_tenth": mean(ranked[: max(1, len(ranked) // 10)]),
            "accuracy_generic": None,
            "margin_mean": mean(list(margin.values())),
            "accuracy_by_user": accuracy,
            "margin_by_user": margin,
            "generic_by_user": dict.fromkeys(accuracy),
        }
    return summary
