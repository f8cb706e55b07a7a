"""One training run: a folder that can be resumed, ending with a model, its results and its card.

recipe.yaml            the resolved settings; `prlhf train --recipe` takes it as is
metrics.jsonl          loss, accuracy and margin per step; accuracy per user per evaluation
checkpoints/           for --resume
model/                 what `prlhf generate` and `prlhf judge` read
results.json           the summary that --json prints
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from prlhf.atomic import atomic_dir, atomic_file
from prlhf.config import DEMO_DATASETS, HUB_DEFAULT_MODEL, TrainConfig, load_recipe, resolve
from prlhf.errors import Interrupted, PrlhfError
from prlhf.model.checkpoint import Trained, build_policy, build_reward_model, save_policy
from prlhf.model.encoding import Encoder
from prlhf.model.engine import Engine
from prlhf.model.reference import Reference
from prlhf.model.reference_cache import open_cache
from prlhf.model.scoring import engine_of
from prlhf.progress import SILENT, Progress
from prlhf.records import Comparison, Prepared, read_prepared
from prlhf.train import metrics
from prlhf.train.trainer import EncodedSet, Follow, PersonalizedTrainer, Report, StopOnInterrupt

MAY_CHANGE_ON_RESUME = {
    "out", "device", "report_to", "save_every", "keep_checkpoints", "eval_every", "eval_limit", "reference_cache",
    "reference_first",
}  # fmt: skip


def train(
    config: TrainConfig, resume: bool = False, progress: Progress = SILENT, report: Report | None = None
) -> dict[str, Any]:
    """Train and evaluate; returns the summary that stands in results.json. `report` is told of every evaluation.

    Raises PrlhfError for input the user can mend and Interrupted after a saved Ctrl-C.
    """
    folder = config.folder
    data = read_prepared(Path(config.dataset))
    config = with_base(without_users(config), data)
    if resume:
        check_same(folder, config, data)
        if (folder / "model").is_dir():
            progress.note(f"{folder} is already finished")
            return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]
    check_data(config, data, progress)
    if not resume:
        check_new(folder)
    if config.objective == "sft":
        from prlhf.train.sft import train_sft  # TRL takes a while to import

        return train_sft(config, data, resume, progress, report)
    build = build_reward_model if config.objective == "rm" else build_policy
    policy: Trained[Any] = build(config, data.user_ids, {u.id: u.text for u in data.users if u.seen and u.text})
    train_set, eval_set, encoder = encode(policy, data)
    if not resume:
        write_recipe(folder, config, data)
    encoder.note_cut(progress)
    engine = engine_of(policy, progress)
    reference = None if config.objective == "rm" else reference_of(engine, config, progress)
    try:
        return _run(policy, engine, reference, train_set, eval_set, encoder, resume, progress, report)
    finally:
        if reference:
            reference.save()


def reference_of(engine: Engine, config: TrainConfig, progress: Progress) -> Reference:
    """The log-probs of the base under the engine's policy, which is not trained yet; on disk where `config` says so."""
    return Reference(engine, open_cache(engine.model.lm, progress) if config.reference_cache else None)


def _run(
    policy: Trained[Any],
    engine: Engine,
    reference: Reference | None,
    train_set: EncodedSet,
    eval_set: EncodedSet,
    encoder: Encoder,
    resume: bool,
    progress: Progress,
    report: Report | None,
) -> dict[str, Any]:
    config, folder = policy.config, policy.config.folder
    if reference and (config.reference_first or config.full_finetune):  # then there is no adapter to turn off later
        reference.fill([*train_set.encoded, *eval_set.encoded], config.batch_size, progress)
    follow = Follow(folder / "metrics.jsonl", progress, report)
    trainer = PersonalizedTrainer(policy, engine, reference, train_set, eval_set, folder, [follow])
    if config.gradient_checkpointing:
        policy.base.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    results = fit(trainer, config, resume, progress, "comparisons") | {"cut": encoder.cut}
    trainer.settle()
    if len(eval_set):
        progress.start("evaluating", len(eval_set) * (1 if config.user_model == "uniform" else 2))
        results["eval"] = trainer.evaluate_once(progress)
        progress.finish()
    if reference and config.reference_cache:
        progress.note(f"reference: {reference.cached} responses from the cache, {reference.computed} computed")
    finish(folder, results, lambda model: write_model(policy, results, model))
    return results


def fit(trainer: Any, config: TrainConfig, resume: bool, progress: Progress, unit: str) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; what all objectives' summaries say of it. `unit`: what a row is.

    `trainer` is one of `trainer.OwnParts`. Raises Interrupted after a saved Ctrl-C.
    """
    folder = config.folder
    checkpoint = newest_checkpoint(folder) if resume else None
    first = step_of(checkpoint) if checkpoint else 0
    metrics.cut_back(trainer.metrics_path, first)
    began = time.perf_counter()
    with StopOnInterrupt() as stopper:
        trainer.add_callback(stopper)
        if checkpoint and is_last(checkpoint):  # Trainer would train one step more
            trainer.take_up(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    progress.finish()
    steps = trainer.state.global_step
    if stopper.asked:
        raise Interrupted(f"stopped after step {steps}; go on with: prlhf train --resume --out {folder}")
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


def check_new(folder: Path) -> None:
    if (folder / "recipe.yaml").exists():
        raise PrlhfError(f"{folder} already holds a run", "go on with --resume, or choose another --out")


def without_users(config: TrainConfig) -> TrainConfig:
    """Supervised fine-tuning knows no users: what is set for them is as good as not set."""
    if config.objective != "sft":
        return config
    return vanilla(config)


def vanilla(config: TrainConfig) -> TrainConfig:
    """The same settings without a user model and without text about users."""
    return config.model_copy(update={"user_model": "uniform", "user_tokens": 0, "user_text": False})


def with_base(config: TrainConfig, data: Prepared) -> TrainConfig:
    """Fill in the default base: the bundled tiny one for demo data, a small instruct model for the rest."""
    if config.model:
        local = Path(config.model)  # the run must find it from any folder later
        named = config.model == "tiny" or not local.exists()
        return config if named else config.model_copy(update={"model": str(local.resolve())})
    tiny = data.manifest.get("dataset") in DEMO_DATASETS
    return config.model_copy(update={"model": "tiny" if tiny else HUB_DEFAULT_MODEL})


def check_data(config: TrainConfig, data: Prepared, progress: Progress) -> None:
    if not data.train:
        raise PrlhfError(f"{config.dataset} holds no training comparisons", "see the counts of `prlhf prep`")
    users = len(data.user_ids)
    if users == 1 and config.user_model != "uniform":
        progress.note("warning: one user only: what is learned cannot be told from plain DPO")
    if config.user_model == "cluster" and config.k > users:
        progress.note(f"warning: k = {config.k} clusters for {users} users: some will be of no use")


def encode(policy: Trained[Any], data: Prepared) -> tuple[EncodedSet, EncodedSet, Encoder]:
    """Tokenise both splits under the policy's token budgets."""
    encoder = policy.encoder()

    def encoded(rows: list[Comparison]) -> EncodedSet:
        return EncodedSet([encoder.comparison(row) for row in rows], rows)

    return encoded(data.train), encoded(data.eval[: policy.config.eval_limit]), encoder


def write_recipe(folder: Path, config: TrainConfig, data: Prepared, flags: str = "") -> None:
    """The settings, with the `flags` that no key stands for, and the content hash of the data they were used on as
    comments, the latter for --resume."""
    values = config.model_dump(mode="json") | {"dataset": str(Path(config.dataset).resolve())}
    text = f"# prlhf train {flags}--recipe {folder}/recipe.yaml --out NEW\n# data: {data.manifest['content_hash']}\n"
    with atomic_file(folder / "recipe.yaml") as beside:
        beside.write_text(text + yaml.safe_dump({"train": values}, sort_keys=False), encoding="utf-8")


def saved_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`."""
    path = folder / "recipe.yaml"
    if not path.exists():
        raise PrlhfError(f"{folder} holds no run to resume", "start it without --resume")
    return resolve(TrainConfig, load_recipe(path).get("train", {}), {"out": str(folder)})


def check_same(folder: Path, config: TrainConfig, data: Prepared) -> None:
    """A resumed run must be the run it resumes: same settings, same data."""
    saved = with_base(saved_config(folder), data)
    for key in type(config).model_fields:
        before, now = getattr(saved, key), getattr(config, key)
        same = Path(before).resolve() == Path(now).resolve() if key == "dataset" else before == now
        if key not in MAY_CHANGE_ON_RESUME and not same:
            raise PrlhfError(
                f"{folder} was started with {key} = {before}, not {now}", "leave it as it was, or choose another --out"
            )
    if data.manifest["content_hash"] not in (folder / "recipe.yaml").read_text():
        raise PrlhfError(f"the data in {config.dataset} changed since {folder} was started", "choose another --out")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. Trainer writes trainer_state.json last, so a half-written one lacks it."""
    found = sorted((folder / "checkpoints").glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def is_last(checkpoint: Path) -> bool:
    """Whether nothing was left to train when it was written."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return bool(state["global_step"] >= state["max_steps"])


def finish(folder: Path, results: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Write the results, then the model, whole: it comes last and marks the run as finished."""
    with atomic_file(folder / "results.json") as beside:
        beside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with atomic_dir(folder / "model") as model:
        write(model)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def write_model(policy: Trained[Any], results: dict[str, Any], folder: Path) -> None:
    """The model, and a card that says how it was made."""
    save_policy(policy, folder)
    template = resources.files("prlhf.train").joinpath("card.md.jinja").read_text(encoding="utf-8")
    card = jinja2.Template(template, trim_blocks=True, lstrip_blocks=True).render(
        config=policy.config, results=results, users=len(policy.user_ids), base=policy.base
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
