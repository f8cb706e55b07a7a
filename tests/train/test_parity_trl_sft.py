"""The loss and gradients of supervised fine-tuning are those of TRL's SFTTrainer on the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import whole_loss

from prlhf.dataset import read_prepared
from prlhf.model.checkpoint import build_policy
from prlhf.model.rewards import engine_of
from prlhf.train.encode import encode
from prlhf.train.loop import Loop
from prlhf.train.objectives import Imitation
from prlhf.train.run import without_users

MakeConfig = Callable[..., Any]
IGNORED = -100  # a label that counts for nothing


def test_ours_is_trl(tmp_path: Path, make_config: MakeConfig, prepared: Path, tiny_base: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    config = without_users(make_config(tmp_path, objective="sft", full_finetune=True))
    policy = build_policy(config, [], {})
    train_set, held_out, _ = encode(policy, read_prepared(prepared))
    rows = train_set.encoded[:5]
    engine = engine_of(policy)
    ours = whole_loss(Loop(policy, engine, Imitation(engine), train_set, held_out), rows)
    ours.backward()

    args = SFTConfig(
        str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, use_cpu=True, max_length=None,
        per_device_train_batch_size=len(rows), report_to="none",
    )  # fmt: skip
    tokens = {
        "input_ids": [row.prompt + row.response for row in rows],
        "labels": [[IGNORED] * len(row.prompt) + row.response for row in rows],
    }
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_dict(tokens),
        processing_class=policy.tokenizer,
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    gradients = {name: p.grad for name, p in policy.model.lm.named_parameters()}
    expected = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)
