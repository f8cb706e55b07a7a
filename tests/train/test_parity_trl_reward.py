"""Without users, our reward model's loss and gradients are those of TRL's RewardTrainer on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loop_of, loss_of, moved_policy

from prlhf.dataset import read_prepared

MakeConfig = Callable[..., Any]


@pytest.mark.parametrize("full", [False, True])
def test_ours_without_users_is_trl(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, tiny_base: Path, full: bool
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    rows = [replace(row, user_text="") for row in read_prepared(prepared).train[:4]]
    config = make_config(tmp_path, objective="rm", user_model="uniform", user_tokens=0, full_finetune=full)
    ours = moved_policy(config)
    encoded = loop_of(ours, rows).train_set.encoded
    assert len({len(e.chosen) for e in encoded} | {len(e.rejected) for e in encoded}) > 1  # else nothing is padded
    assert ours.tokenizer.pad_token_id != ours.tokenizer.eos_token_id  # TRL's model finds the last token by its id
    loss = loss_of(ours, rows)
    loss.backward()

    args = RewardConfig(
        str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, use_cpu=True, max_length=None,
        per_device_train_batch_size=len(rows), report_to="none",
    )  # fmt: skip
    lora = LoraConfig(
        r=2, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="SEQ_CLS",
        modules_to_save=["score"],
    )  # fmt: skip
    columns = {
        "chosen_ids": [e.prompt + e.chosen for e in encoded],
        "rejected_ids": [e.prompt + e.rejected for e in encoded],
    }
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=1, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=ours.tokenizer,
        peft_config=None if full else lora,
    )
    theirs = dict(trainer.model.named_parameters())
    pairs = {name: (p, theirs[name]) for name, p in ours.model.lm.named_parameters() if p.requires_grad}
    head = "score.weight" if full else "base_model.model.score.modules_to_save.default.weight"
    pairs[head] = (ours.model.head.weight, theirs[head])
    assert {name for name, p in theirs.items() if p.requires_grad} == set(pairs)
    with torch.no_grad():
        for mine, their in pairs.values():
            their.copy_(mine)
    expected = trainer.compute_loss(
        trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    )
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(loss.item() - 0.6931472) > 1e-3  # rewards are not all alike
    for mine, their in pairs.values():
        assert their.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, their.grad, rtol=1e-4, atol=1e-5)
