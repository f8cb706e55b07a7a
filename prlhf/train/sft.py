"""Supervised fine-tuning through TRL's SFT trainer: the first of the three stages.

It makes of a base model one that writes like the chosen responses, for all users alike.

The result, `model/`, is a plain causal LM with its tokenizer (an adapter is merged into its base), so that the next
stage is `prlhf train --model RUN/model`. Prompts and responses become tokens as in the later stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.dataset import Prepared
from prlhf.model.checkpoint import Policy, build_policy
from prlhf.model.encoding import pad_rows
from prlhf.progress import SILENT, Progress
from prlhf.train.callbacks import Follow, Report, Stop
from prlhf.train.demonstrations import Demonstration
from prlhf.train.encode import demonstrations, note_left_out
from prlhf.train.finite import Watch, check_summary
from prlhf.train.run import finish, fit, is_public, public_name, write_recipe
from prlhf.train.trainer import OwnParts, training_arguments

IGNORED = -100  # a label that counts for nothing, in transformers and TRL


def train_sft(
    config: TrainConfig,
    data: Prepared,
    resume: bool = False,
    progress: Progress = SILENT,
    report: Report | None = None,
    stop: Stop | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train on the chosen responses and evaluate; returns the summary that stands in results.json.

    `config` is one without users. Raises Interrupted after a saved Ctrl-C.
    """
    folder = config.folder
    policy = replace(build_policy(config, [], {}), conversational=data.conversational)
    encoder = policy.encoder()
    train_rows, held_out, left_out = demonstrations(encoder, data, config.skip_long, config.eval_limit)
    if not resume:
        write_recipe(folder, config, data)
    encoder.note_cut(progress)
    note_left_out(left_out, progress)
    trainer = ImitationTrainer(policy, train_rows, held_out, folder, progress, report)
    for callback in callbacks:
        trainer.add_callback(callback)
    before = trainer.evaluate_held_out(progress)
    check_summary(config, trainer.state.global_step, before)
    results = fit(trainer, config, resume, progress, "demonstrations", stop or Stop())
    results |= {"demonstrations": len(train_rows), "cut": encoder.cut, "left_out": left_out}
    if held_out:
        after = trainer.evaluate_once(progress)
        results["eval"] = after | {f"{name}_before": value for name, value in before.items()}
    finish(folder, results, lambda model: write_merged(policy, results, model))
    return results


def as_dataset(rows: Sequence[Demonstration]) -> Dataset:
    """TRL's pre-tokenised form, with labels at the response's tokens only."""
    return Dataset.from_dict(
        {
            "input_ids": [row.prompt + row.response for row in rows],
            "labels": [[IGNORED] * len(row.prompt) + row.response for row in rows],
        }
    )


def sft_arguments(config: TrainConfig, folder: Path) -> SFTConfig:
    """What all objectives share, and TRL's own: nothing cut, packed or cast behind our back."""
    ours = {
        "max_length": None,
        "bf16": False,  # the base is loaded in its precision already
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    return SFTConfig(**(training_arguments(config, folder).to_dict() | ours))


class ImitationTrainer(OwnParts, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer, with evaluation per token of the held-out set and checkpoints as safetensors."""

    control: TrainerControl

    def __init__(
        self,
        policy: Policy,
        train: Sequence[Demonstration],
        held_out: Sequence[Demonstration],
        folder: Path,
        progress: Progress = SILENT,
        report: Report | None = None,
    ) -> None:
        self.policy, self.held_out, self.watch = policy, held_out, Watch()
        self.metrics_path = folder / "metrics.jsonl"
        super().__init__(
            model=policy.model.lm,
            args=sft_arguments(policy.config, folder),
            train_dataset=as_dataset(train),
            eval_dataset=as_dataset(held_out) if policy.config.eval_every else None,
            processing_class=policy.tokenizer,
            callbacks=[FollowTokens(self.metrics_path, progress, report)],
        )
        self.remove_callback(PrinterCallback)

    @override
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave out TRL's card in the folder of checkpoints: the model gets ours at the end."""

    @override
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, where anything is held out."""
        if not self.held_out:
            return {}
        numbers = {f"eval_{name}": value for name, value in self.evaluate_once().items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    @override
    def evaluate_held_out(self, progress: Progress = SILENT) -> dict[str, float]:
        """Negative log-likelihood in nats of the held-out responses, the mean over their tokens and over them.

        Unlike TRL's `eval_loss`, a mean of batches' means, it does not depend on the batches.
        """
        model, pad = self.policy.model, self.policy.tokenizer.pad_token_id
        ordered = sorted(self.held_out, key=lambda row: len(row.prompt) + len(row.response))  # less padding
        size, total, training = 2 * self.args.per_device_train_batch_size, 0.0, model.training
        model.eval()
        progress.start("evaluating", len(ordered))
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            rows = pad_rows([r.prompt for r in batch], [r.response for r in batch], [0] * len(batch), 0, pad)
            with torch.no_grad():
                total -= model(rows.to(self.policy.device)).sum().item()
            progress.advance(len(batch))
        progress.finish()
        model.train(training)
        tokens = sum(len(row.response) for row in ordered)
        return {"nats_per_token": total / tokens, "nats_per_response": total / len(ordered)} if ordered else {}

    @override
    def _send_telemetry(self) -> None:
        """Nothing: TRL would tell its makers of every run."""


class FollowTokens(Follow):
    """Follow, without the token count that TRL starts anew when a run is resumed."""

    left_out = frozenset({"num_tokens"})


CARD = """---
{base_model}tags: [prlhf, sft]
---
# A base model made with prlhf

`{model}`, fine-tuned on the chosen responses of `{dataset}` ({steps} steps; the same for all users).

    prlhf train --model FOLDER --dataset DATASET
"""


def write_merged(policy: Policy, results: dict[str, Any], folder: Path) -> None:
    """The whole model, an adapter merged into it, and a card."""
    lm = policy.model.lm
    merged = lm.merge_and_unload() if hasattr(lm, "merge_and_unload") else lm
    merged.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    model, data = results["model"], Path(results["dataset"]).name
    named = f"base_model: {model}\n" if is_public(model) else ""
    card = CARD.format(base_model=named, model=public_name(model), dataset=data, steps=results["steps"])
    (folder / "README.md").write_text(card, encoding="utf-8")
