"""One training run, from settings to a finished model; see run_folder.py for what it writes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prlhf.config import TrainConfig
from prlhf.config.names import HUB_DEFAULT_MODEL
from prlhf.config.train import ONLINE, REFERENCE, WITHOUT_USERS
from prlhf.dataset import Prepared
from prlhf.errors import CannotWrite, Interrupted, PrlhfError
from prlhf.extensions import DATA_SETS
from prlhf.files import in_use
from prlhf.folders import claim
from prlhf.model import workers
from prlhf.model.checkpoint import Trained, build_policy, build_reward_model, model_folder, read_about
from prlhf.model.encoding import Encoder
from prlhf.model.engine import Engine
from prlhf.model.quantized import check_package
from prlhf.model.reference import Reference, open_cache
from prlhf.model.rewards import engine_of
from prlhf.model.sharding import gathered
from prlhf.model.user_models import user_model_of
from prlhf.progress import SILENT, Progress
from prlhf.train import metrics
from prlhf.train.checkpoints import newest_checkpoint, remove_checkpoints, step_of
from prlhf.train.early_stopping import check_metric
from prlhf.train.encode import encode, note_left_out
from prlhf.train.final_model import write_model
from prlhf.train.finite import check_parameters, check_summary
from prlhf.train.loop import Listener, Loop, Report, Stop
from prlhf.train.objectives import objective_of
from prlhf.train.online import OnlineLoop
from prlhf.train.policy_gradient import PolicyGradientLoop
from prlhf.train.rounds import Rounds
from prlhf.train.run_folder import check_same, data_of, finish, finished, saved_config, take_back, write_recipe
from prlhf.train.trackers import tracker_names
from prlhf.train.user_start import start_users

ROUNDS: dict[str, type[Rounds]] = {
    "online-dpo": OnlineLoop,
    "grpo": PolicyGradientLoop,
    "rloo": PolicyGradientLoop,
}


def train(
    config: TrainConfig, resume: bool = False, progress: Progress = SILENT, report: Report | None = None
) -> dict[str, Any]:
    """Train and evaluate; returns the summary that is written to results.json.

    Args:
        config: the settings; `dataset` is a prepared folder.
        resume: continue the run in `config.out` from its newest checkpoint.
        progress: shows what happens.
        report: called after every evaluation, see loop.Report.

    Raises:
        PrlhfError: the input has a fault that the user can fix.
        Interrupted: after Ctrl-C, when a checkpoint is saved.
    """
    config, data = checked(config, resume, progress)
    if resume and (done := finished(config.folder, progress)):
        return done
    try:
        return learn(config, data, resume, progress, report)
    except BaseException as error:
        taken_back = not resume and take_back(config.folder)
        if isinstance(error, CannotWrite) and not taken_back:
            then = f"then continue with: prlhf train --resume --out {config.folder}"
            raise PrlhfError(error.message, f"{error.first or 'make room for it'}, {then}") from error
        raise


def checked(config: TrainConfig, resume: bool, progress: Progress) -> tuple[TrainConfig, Prepared]:
    """The resolved settings and the data of a run that can start or be resumed. Raises PrlhfError if it cannot."""
    tracker_names(config.report_to)
    check_package(config.quantize)
    claim(config.folder, "run", resume)
    data = data_of(config, resume)
    config = with_reward(with_base(without_users(config), data))
    if resume:
        check_same(config, with_base(saved_config(config.folder), data), data)
    else:
        check_data(config, data, progress)
    return config, data


def learn(
    config: TrainConfig,
    data: Prepared,
    resume: bool,
    progress: Progress = SILENT,
    report: Report | None = None,
    stop: Stop | None = None,
    listener: Listener | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """Train with settings and data that were checked: in one process, or on every worker, each with its own folder.

    `sharded`: each worker holds only a shard of the language model (FSDP2).
    """
    build = build_reward_model if config.objective == "rm" else build_policy
    texts = {u.id: u.text for u in data.users if u.seen and u.text}
    policy: Trained[Any] = build(config, data.user_ids, texts, sharded, progress)
    policy = replace(policy, conversational=data.conversational)
    train_set, held_out, encoder = encode(policy, data)
    check_metric(config, held_out.rows)
    if not resume:
        write_recipe(config.folder, config, data)
    encoder.note_cut(progress)
    note_left_out({"train": train_set.left_out, "eval": held_out.left_out}, progress)
    engine = engine_of(policy, progress)
    reference = reference_of(engine, config, progress) if REFERENCE.holds(config) else None
    objective = objective_of(engine, reference, config)
    try:
        # with all weights trained there is no adapter to turn off later; shards would need all workers for each batch
        if reference and (config.reference_first or config.full_finetune or engine.in_step):
            reference.fill([*train_set.encoded, *held_out.encoded], config.batch_size, progress)
        about = (policy, engine, objective, train_set, held_out, progress, report, stop, listener)
        loop = ROUNDS[config.objective](data, *about) if ONLINE.holds(config) else Loop(*about)
        return _run(loop, encoder, resume)
    finally:
        if reference:
            reference.save()


def reference_of(engine: Engine, config: TrainConfig, progress: Progress) -> Reference:
    """The log-probs of the base of the engine's untrained policy, cached on disk if `config` says so."""
    return Reference(engine, open_cache(engine.model.lm, progress) if config.reference_cache else None)


def _run(loop: Loop, encoder: Encoder, resume: bool) -> dict[str, Any]:
    """Train, evaluate, and write results and model."""
    config, policy, objective, held_out = loop.config, loop.policy, loop.objective, loop.held_out
    if config.gradient_checkpointing:
        policy.base.lm.activation_checkpointing_enable({"use_reentrant": False})
    before = _evaluated_before(loop)
    results = fit(loop, resume)
    if config.objective == "sft":
        results["demonstrations"] = len(loop.train_set)
    if ONLINE.holds(config):
        results["candidates"] = candidates_summary(loop)
    results |= {"cut": encoder.cut, "left_out": {"train": loop.train_set.left_out, "eval": held_out.left_out}}
    loop.optimizer.settle()
    if len(held_out):
        scores = best_of(loop, results) if loop.early_stop else loop.evaluate(loop.progress)
        results["eval"] = scores | {f"{name}_before": value for name, value in before.items()}
    if objective.reference:
        results["reference"] = counted(objective.reference)
        if config.reference_cache:
            text = "reference: {cached} responses from the cache, {computed} computed"
            loop.progress.note(text.format(**results["reference"]))
    with gathered(policy.model):
        finish(config.folder, results, lambda model: write_model(policy, results, model))
    return results


def best_of(loop: Loop, results: dict[str, Any]) -> dict[str, Any]:
    """Go back to the best evaluation of the run, and say so in `results`; returns that evaluation."""
    assert loop.early_stop
    scores = loop.early_stop.use(loop.model, loop.step)
    best = results["best"] = loop.early_stop.results()
    if best["stopped"] or best["step"] != loop.step:
        loop.progress.note(
            "{} after step {}: {metric} is best at step {step} ({value:.4g}), whose model is kept".format(
                "stopped" if best["stopped"] else "finished", loop.step, **best
            )
        )
    return scores


def _evaluated_before(loop: Loop) -> dict[str, Any]:
    """What supervised fine-tuning starts from: the evaluation of the base."""
    if loop.config.objective != "sft" or not len(loop.held_out):
        return {}
    before = loop.objective.evaluate(loop.held_out, 2 * loop.config.batch_size, loop.progress)
    check_summary(loop.config, 0, before)
    return before


def counted(reference: Reference) -> dict[str, int]:
    """How many responses' reference log-probs all workers computed, and how many they found on disk."""
    tries = workers.gather((reference.computed, reference.cached))
    return {"computed": sum(computed for computed, _ in tries), "cached": sum(cached for _, cached in tries)}


def fit(loop: Loop, resume: bool) -> dict[str, Any]:
    """Train from the newest checkpoint to the end; returns what the summaries of all objectives have in common.

    Raises Interrupted after Ctrl-C, when a checkpoint is saved.
    """
    config, folder = loop.config, loop.config.folder
    checkpoint = newest_checkpoint(folder, loop.progress) if resume else None
    first = step_of(checkpoint) if checkpoint else 0
    remove_checkpoints(folder, after=first)  # damaged ones, so that they are not written into
    metrics.begin(loop.metrics_path, checkpoint)
    if loop.samples or loop.samples_path.exists():
        metrics.begin(loop.samples_path, checkpoint)
    if loop.early_stop:
        loop.early_stop.begin(checkpoint)
    if config.user_init == "choices" and not checkpoint:
        start_users(loop.engine, config, loop.train_set, len(loop.policy.user_ids), loop.progress)
    began = time.perf_counter()
    with loop.stop, in_use(folder):
        if checkpoint:
            loop.resume(checkpoint)
        loop.run()
    if loop.stop.agreed():
        raise Interrupted(f"stopped after step {loop.step}; continue with: prlhf train --resume --out {folder}")
    check_parameters(config, loop.step, loop.model.parameters())
    seconds = time.perf_counter() - began
    losses = [row["loss"] for row in metrics.read(loop.metrics_path) if "loss" in row]
    return {
        "run": str(folder),
        "objective": config.objective,
        "dataset": config.dataset,
        "model": config.model,
        "steps": loop.step,
        "loss": sum(losses) / len(losses),
        "train_seconds": seconds,
        f"{loop.objective.unit}_per_second": (loop.step - first) * config.batch_size * config.accumulation / seconds,
    }


def candidates_summary(loop: Loop) -> dict[str, Any]:
    """How many candidates were written, and the numbers of the first and the last round."""
    rounds = [row["candidates"] for row in metrics.read(loop.metrics_path) if "candidates" in row]
    return {"written": sum(one["written"] for one in rounds), "first": rounds[0], "last": rounds[-1]}


def without_users(config: TrainConfig) -> TrainConfig:
    """The settings that are used: supervised fine-tuning ignores what is set about users."""
    if config.objective != "sft":
        return config
    return vanilla(config)


def vanilla(config: TrainConfig) -> TrainConfig:
    """The same settings without a user model and without text about users."""
    return config.model_copy(update=WITHOUT_USERS).without_unused()


def with_base(config: TrainConfig, data: Prepared) -> TrainConfig:
    """Fill in the default base: the bundled tiny one for demo data, a small instruct model for the rest."""
    if config.model:
        local = Path(config.model).expanduser()  # the run must find it from any folder later
        named = config.model == "tiny" or not local.exists()
        return config if named else config.model_copy(update={"model": str(local.resolve())})
    name = str(data.manifest.get("dataset"))
    tiny = name in DATA_SETS and DATA_SETS[name].bundled_base
    return config.model_copy(update={"model": "tiny" if tiny else HUB_DEFAULT_MODEL})


def with_reward(config: TrainConfig) -> TrainConfig:
    """Write the reward's run as a whole path: this run must find it from any folder later. Raises PrlhfError."""
    if config.reward is None:
        return config
    read_about(model_folder(config.reward))
    return config.model_copy(update={"reward": config.reward.resolve()})


def check_data(config: TrainConfig, data: Prepared, progress: Progress) -> None:
    """Refuse data without training comparisons; note data that leave personalization nothing to learn."""
    if not data.train:
        raise PrlhfError(f"{config.dataset} holds no training comparisons", "see the counts of `prlhf prep`")
    for line in user_model_of(config).warnings(config, len(data.user_ids)):
        progress.note(f"warning: {line}")
