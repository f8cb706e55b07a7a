"""One training run: a folder that can be resumed, ending with a model, its results and its card.

recipe.yaml            the resolved settings; `prlhf train --recipe` takes it as is
metrics.jsonl          loss, accuracy and margin per step; accuracy per user per evaluation
checkpoints/           for --resume
model/                 what `prlhf generate` and `prlhf judge` read
results.json           the summary that --json prints
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import TypeAdapter
from transformers import TrainerCallback

from prlhf.applies import unused
from prlhf.config import DEMO_DATASETS, HUB_DEFAULT_MODEL, TrainConfig, load_recipe
from prlhf.dataset import Prepared, gone, is_prepared, read_prepared
from prlhf.errors import CannotWrite, Interrupted, PrlhfError, one_line
from prlhf.files import atomic_dir, atomic_file
from prlhf.folders import claim, mark, read_marker, unmark, what_is
from prlhf.model import workers
from prlhf.model.checkpoint import Trained, build_policy, build_reward_model, save_policy
from prlhf.model.encoding import Encoder
from prlhf.model.engine import Engine
from prlhf.model.reference import Reference
from prlhf.model.reference_cache import open_cache
from prlhf.model.scoring import engine_of
from prlhf.model.sharding import gathered
from prlhf.parse import json_text, json_value
from prlhf.progress import SILENT, Progress
from prlhf.train import metrics
from prlhf.train.callbacks import Follow, Report, Stop
from prlhf.train.checkpoints import is_last, newest_checkpoint, remove_checkpoints, step_of
from prlhf.train.encode import encode, note_left_out
from prlhf.train.trackers import tracker_names
from prlhf.train.trainer import PersonalizedTrainer

_RESULTS = TypeAdapter(dict[str, Any])
MAY_CHANGE_ON_RESUME = {
    "out", "device", "report_to", "save_every", "keep_checkpoints", "eval_every", "eval_limit", "reference_cache",
    "reference_first", "dataset",  # whose content is compared
}  # fmt: skip


def train(
    config: TrainConfig, resume: bool = False, progress: Progress = SILENT, report: Report | None = None
) -> dict[str, Any]:
    """Train and evaluate; returns the summary that stands in results.json. `report` is told of every evaluation.

    Raises PrlhfError for input the user can mend and Interrupted after a saved Ctrl-C.
    """
    config, data = checked(config, resume, progress)
    if resume and (done := finished(config.folder, progress)):
        return done
    try:
        return learn(config, data, resume, progress, report, Stop())
    except BaseException as error:
        with suppress(OSError):  # Trainer makes it before there is a checkpoint
            (config.folder / "checkpoints").rmdir()
        taken_back = not resume and take_back(config.folder)
        if isinstance(error, CannotWrite) and not taken_back:
            then = f"then go on with: prlhf train --resume --out {config.folder}"
            raise PrlhfError(error.message, f"{error.first or 'make room for it'}, {then}") from error
        raise


def take_back(folder: Path) -> bool:
    """Remove what a start left that ended before the first step: the same command may then be given again.

    Returns whether there is no run any more.
    """
    begun = metrics.read(folder / "metrics.jsonl") or any((folder / "checkpoints").glob("checkpoint-*"))
    if not begun and read_marker(folder).get("kind") == "run":
        unmark(folder, ["recipe.yaml", "metrics.jsonl"])
    return not begun


def checked(config: TrainConfig, resume: bool, progress: Progress) -> tuple[TrainConfig, Prepared]:
    """The resolved settings and the data of a run that can begin, or go on; raises PrlhfError where it cannot."""
    tracker_names(config.report_to)
    claim(config.folder, "run", resume)
    data = data_of(config, resume)
    config = with_base(without_users(config), data)
    if resume:
        check_same(config.folder, config, data)
    else:
        check_data(config, data, progress)
    return config, data


def data_of(config: TrainConfig, resume: bool) -> Prepared:
    """The data of a run. Where a run that goes on has its data no more, the error says where they were."""
    folder = Path(config.dataset)
    if resume and not is_prepared(folder) and _same_place(saved_config(config.folder).dataset, config.dataset):
        raise gone(config.folder, config.dataset)
    return read_prepared(folder)


def _same_place(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def finished(folder: Path, progress: Progress) -> dict[str, Any] | None:
    """The results of a run that has come to its end."""
    if what_is(folder / "model") != "model" or not (folder / "results.json").is_file():
        return None
    progress.note(f"{folder} is already finished")
    return read_results(folder)


def read_results(folder: Path) -> dict[str, Any]:
    """The summary of a finished run. Raises PrlhfError."""
    path = folder / "results.json"
    try:
        return _RESULTS.validate_python(json_value(path.read_bytes()))
    except (OSError, ValueError) as error:
        why = f"cannot read {path}: {one_line(error)}"
        raise PrlhfError(why, "its model is there: use it, or train again") from error


def learn(
    config: TrainConfig,
    data: Prepared,
    resume: bool,
    progress: Progress,
    report: Report | None,
    stop: Stop,
    callbacks: Sequence[TrainerCallback] = (),
    sharded: bool = False,
) -> dict[str, Any]:
    """The training function: the same in one process and in every worker of many, each with a folder of its own.

    `sharded`: each worker is to hold but a shard of the language model (FSDP2).
    """
    if config.objective == "sft":
        from prlhf.train.sft import train_sft  # TRL takes a while to import

        return train_sft(config, data, resume, progress, report, stop, callbacks)
    build = build_reward_model if config.objective == "rm" else build_policy
    texts = {u.id: u.text for u in data.users if u.seen and u.text}
    policy: Trained[Any] = build(config, data.user_ids, texts, sharded)
    policy = replace(policy, conversational=data.conversational)
    train_set, eval_set, encoder = encode(policy, data)
    if not resume:
        write_recipe(config.folder, config, data)
    encoder.note_cut(progress)
    note_left_out({"train": train_set.left_out, "eval": eval_set.left_out}, progress)
    engine = engine_of(policy, progress)
    reference = None if config.objective == "rm" else reference_of(engine, config, progress)
    try:
        follow = Follow(config.folder / "metrics.jsonl", progress, report)
        trainer = PersonalizedTrainer(
            policy, engine, reference, train_set, eval_set, config.folder, [follow, *callbacks]
        )
        return _run(trainer, encoder, resume, progress, stop)
    finally:
        if reference:
            reference.save()


def reference_of(engine: Engine, config: TrainConfig, progress: Progress) -> Reference:
    """The log-probs of the base under the engine's policy, which is not trained yet; on disk where `config` says so."""
    return Reference(engine, open_cache(engine.model.lm, progress) if config.reference_cache else None)


def _run(
    trainer: PersonalizedTrainer, encoder: Encoder, resume: bool, progress: Progress, stop: Stop
) -> dict[str, Any]:
    policy, reference, held_out = trainer.policy, trainer.reference, trainer.held_out.encoded
    config, folder = policy.config, policy.config.folder
    # with all weights trained there is no adapter to turn off later; shards would need all workers for each
    if reference and (config.reference_first or config.full_finetune or trainer.engine.in_step):
        reference.fill([*trainer.train_set.encoded, *held_out], config.batch_size, progress)
    if config.gradient_checkpointing:
        policy.base.lm.activation_checkpointing_enable({"use_reentrant": False})
    results = fit(trainer, config, resume, progress, "comparisons", stop)
    left_out = {"train": trainer.train_set.left_out, "eval": trainer.held_out.left_out}
    results |= {"cut": encoder.cut, "left_out": left_out}
    trainer.settle()
    if held_out:
        progress.start("evaluating", len(workers.spread(held_out)) * (1 if config.user_model == "uniform" else 2))
        results["eval"] = trainer.evaluate_once(progress)
        progress.finish()
    if reference:
        results["reference"] = counted(reference)
        if config.reference_cache:
            progress.note(
                "reference: {cached} responses from the cache, {computed} computed".format(**results["reference"])
            )
    with gathered(policy.model):
        finish(folder, results, lambda model: write_model(policy, results, model))
    return results


def counted(reference: Reference) -> dict[str, int]:
    """How many responses' reference log-probs all workers computed, and how many they found on disk."""
    tries = workers.gather((reference.computed, reference.cached))
    return {"computed": sum(computed for computed, _ in tries), "cached": sum(cached for _, cached in tries)}


def fit(trainer: Any, config: TrainConfig, resume: bool, progress: Progress, unit: str, stop: Stop) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; what all objectives' summaries say of it. `unit`: what a row is.

    `trainer` is one of `trainer.OwnParts`. Raises Interrupted after a saved Ctrl-C.
    """
    folder = config.folder
    checkpoint = newest_checkpoint(folder, progress) if resume else None
    first = step_of(checkpoint) if checkpoint else 0
    remove_checkpoints(folder, after=first)  # damaged ones, which would be written into
    metrics.begin(trainer.metrics_path, checkpoint)
    began = time.perf_counter()
    with stop:
        trainer.add_callback(stop)
        if checkpoint and is_last(checkpoint):  # Trainer would train one step more
            trainer.take_up(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    progress.finish()
    steps = trainer.state.global_step
    if stop.asked:
        raise Interrupted(f"stopped after step {steps}; go on with: prlhf train --resume --out {folder}")
    trainer.check_weights()
    seconds = time.perf_counter() - began
    # of every try, unlike Trainer's own
    losses = [row["loss"] for row in metrics.read(trainer.metrics_path) if "loss" in row]
    return {
        "run": str(folder),
        "objective": config.objective,
        "dataset": config.dataset,
        "model": config.model,
        "steps": steps,
        "loss": sum(losses) / len(losses),
        "train_seconds": seconds,
        f"{unit}_per_second": (steps - first) * config.batch_size * config.accumulation / seconds,
    }


def without_users(config: TrainConfig) -> TrainConfig:
    """Supervised fine-tuning knows no users: what is set for them is as good as not set."""
    if config.objective != "sft":
        return config
    return vanilla(config)


def vanilla(config: TrainConfig) -> TrainConfig:
    """The same settings without a user model and without text about users."""
    without = config.model_copy(update={"user_model": "uniform", "user_tokens": 0, "user_text": False})
    return without.without_unused()


def with_base(config: TrainConfig, data: Prepared) -> TrainConfig:
    """Fill in the default base: the bundled tiny one for demo data, a small instruct model for the rest."""
    if config.model:
        local = Path(config.model).expanduser()  # the run must find it from any folder later
        named = config.model == "tiny" or not local.exists()
        return config if named else config.model_copy(update={"model": str(local.resolve())})
    tiny = data.manifest.get("dataset") in DEMO_DATASETS
    return config.model_copy(update={"model": "tiny" if tiny else HUB_DEFAULT_MODEL})


def check_data(config: TrainConfig, data: Prepared, progress: Progress) -> None:
    """Refuse data without comparisons to train on; note what makes personalization idle."""
    if not data.train:
        raise PrlhfError(f"{config.dataset} holds no training comparisons", "see the counts of `prlhf prep`")
    users = len(data.user_ids)
    if users == 1 and config.user_model != "uniform":
        progress.note("warning: one user only: what is learned cannot be told from plain DPO")
    if config.user_model == "cluster" and config.k > users:
        progress.note(f"warning: k = {config.k} clusters for {users} users: some will be of no use")


def write_recipe(folder: Path, config: TrainConfig, data: Prepared, flags: str = "") -> None:
    """Write the settings that are used, with comments for what is not a setting.

    These are the `flags` that no key stands for, and the content hash of the data they were used on, for --resume.
    """
    values = config.model_dump(mode="json")
    for key in unused(config.used, config, values):
        del values[key]
    values |= {"dataset": str(Path(config.dataset).resolve())}
    text = f"# prlhf train {flags}--recipe {folder}/recipe.yaml --out NEW\n# data: {data.manifest['content_hash']}\n"
    mark(folder, "run")
    with atomic_file(folder / "recipe.yaml") as beside:
        beside.write_text(text + yaml.safe_dump({"train": values}, sort_keys=False), encoding="utf-8")


def saved_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`."""
    path = folder / "recipe.yaml"
    if not path.exists():
        raise PrlhfError(f"{folder} holds no run to resume", "start it without --resume")
    return TrainConfig.saved(load_recipe(path).get("train", {}) | {"out": str(folder)})


def check_same(folder: Path, config: TrainConfig, data: Prepared) -> None:
    """A resumed run must be the run it resumes: same settings, same data."""
    saved = with_base(saved_config(folder), data)
    for key in type(config).model_fields:
        before, now = getattr(saved, key), getattr(config, key)
        if key not in MAY_CHANGE_ON_RESUME and before != now:
            raise PrlhfError(
                f"{folder} was started with {key} = {before}, not {now}", "leave it as it was, or choose another --out"
            )
    moved = not _same_place(saved.dataset, config.dataset)
    if data.manifest["content_hash"] not in (folder / "recipe.yaml").read_text(encoding="utf-8"):
        if moved:
            raise PrlhfError(
                f"{folder} was started with dataset = {saved.dataset}, and {config.dataset} holds other data",
                "leave it as it was, or choose another --out",
            )
        raise PrlhfError(f"the data in {config.dataset} changed since {folder} was started", "choose another --out")
    if moved:
        _note_place(folder / "recipe.yaml", config.dataset)


def _note_place(recipe: Path, dataset: str) -> None:
    """Have the recipe say where its data are now; all else stays as it is."""
    lines = recipe.read_text(encoding="utf-8").splitlines(keepends=True)
    place = yaml.safe_dump({"dataset": str(Path(dataset).resolve())}, width=10**6)
    with atomic_file(recipe) as beside:
        changed = ("  " + place if line.startswith("  dataset: ") else line for line in lines)
        beside.write_text("".join(changed), encoding="utf-8")


def finish(folder: Path, results: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Write the results, then the model, whole: it comes last and marks the run as finished. The first worker does."""
    if workers.rank() > 0:
        return
    write_results(folder, results)
    with atomic_dir(folder / "model") as model:
        write(model)
    remove_checkpoints(folder)


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write the summary that `--json` prints."""
    with atomic_file(folder / "results.json") as beside:
        beside.write_text(json_text(results, indent=2) + "\n", encoding="utf-8")


def public_name(base: str) -> str:
    """A base as a card that is uploaded may name it: a hub id as it is, a place on this machine by its last part."""
    return Path(base).name if Path(base).expanduser().exists() or Path(base).is_absolute() else base


def is_public(base: str) -> bool:
    """Whether others can find `base` by its name: it is a hub id."""
    return base != "tiny" and public_name(base) == base


def write_model(policy: Trained[Any], results: dict[str, Any], folder: Path) -> None:
    """The model, and a card that says how it was made."""
    save_policy(policy, folder)
    template = resources.files("prlhf.train").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        config=policy.config,
        results=results,
        users=len(policy.user_ids),
        base=policy.base,
        base_name=public_name(policy.base.name),
        base_is_public=is_public(policy.base.name),
        data_name=Path(policy.config.dataset).name,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
