"""Without users, our loss and gradients are those of TRL's DPOTrainer on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loss_of, moved_policy

from prlhf.dataset import read_prepared

MakeConfig = Callable[..., Any]


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_ours_without_users_is_trl(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, tiny_base: Path, beta: float
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = [replace(row, user_text="") for row in read_prepared(prepared).train[:4]]
    policy = moved_policy(make_config(tmp_path, user_model="uniform", user_tokens=0, beta=beta))
    ours = loss_of(policy, rows)
    ours.backward()
    gradients = {name: p.grad for name, p in policy.model.lm.named_parameters() if p.grad is not None}

    args = DPOConfig(
        str(tmp_path / "trl"), beta=beta, bf16=False, gradient_checkpointing=False, use_cpu=True, max_length=None,
        per_device_train_batch_size=len(rows), report_to="none", loss_type=["sigmoid"],
    )  # fmt: skip
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list([{k: getattr(r, k) for k in ("prompt", "chosen", "rejected")} for r in rows]),
        processing_class=policy.tokenizer,
        peft_config=LoraConfig(r=2, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    )
    theirs_by_name = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.model.lm.named_parameters():
            if parameter.requires_grad:
                theirs_by_name[name].copy_(parameter)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours.item() - 0.6931472) > 1e-3  # the adapter has left zero, or this would hold for any beta
    assert len(gradients) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs_by_name[name].grad, rtol=1e-4, atol=1e-5)
