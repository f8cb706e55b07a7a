"""Without users, every loss of the DPO family and its gradients are those of TRL's DPOTrainer on the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loss_of, moved_policy
from torch import Tensor

from prlhf.dataset import read_prepared
from prlhf.extensions import LOSSES

MakeConfig = Callable[..., Any]
LossAndGradients = tuple[float, dict[str, Tensor]]
Both = Callable[[str, float, float], tuple[LossAndGradients, LossAndGradients]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, prepared: Path, tiny_base: Path) -> Both:
    """both(loss, beta, label_smoothing): our loss with its gradients by name, and TRL's; one model each for all."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    folder = tmp_path_factory.mktemp("parity")
    rows = [replace(row, user_text="") for row in read_prepared(prepared).train[:4]]
    policy = moved_policy(make_config(folder / "ours", user_model="uniform", user_tokens=0))
    args = DPOConfig(
        str(folder / "trl"), bf16=False, gradient_checkpointing=False, use_cpu=True, max_length=None,
        per_device_train_batch_size=len(rows), report_to="none",
    )  # fmt: skip
    theirs = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list([{k: getattr(r, k) for k in ("prompt", "chosen", "rejected")} for r in rows]),
        processing_class=policy.tokenizer,
        peft_config=LoraConfig(r=2, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
    )
    adapter = {name: p for name, p in policy.model.lm.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter[name])
    their_batch = theirs.data_collator([theirs.train_dataset[i] for i in range(len(rows))])

    def with_gradients(loss: Tensor, model: torch.nn.Module) -> LossAndGradients:
        model.zero_grad()
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def compute(name: str, beta: float, smoothing: float) -> tuple[LossAndGradients, LossAndGradients]:
        config = policy.config.model_copy(update={"loss": name, "beta": beta, "label_smoothing": smoothing})
        ours = loss_of(replace(policy, config=config), rows)
        theirs.loss_types, theirs.loss_weights = [name], [1.0]
        theirs.beta, theirs.label_smoothing = beta, smoothing
        of_trl = theirs.compute_loss(theirs.model, their_batch)
        return with_gradients(ours, policy.model.lm), with_gradients(of_trl, theirs.model)

    return compute


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("name", list(LOSSES.ours))
def test_ours_without_users_is_trl(both: Both, name: str, beta: float) -> None:
    smoothing = 0.1 if name in ("robust", "exo_pair") else 0.0  # TRL's other losses do not read it
    (loss, gradients), (their_loss, their_gradients) = both(name, beta, smoothing)
    assert loss == pytest.approx(their_loss, rel=1e-5, abs=1e-5)
    assert len(gradients) == 2 * 2 * 7  # A and B of seven linear layers in two blocks
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert largest > 1e-3
    for parameter, gradient in gradients.items():  # rounding grows with the gradients, which reach 800 in sppo_hard
        torch.testing.assert_close(gradient, their_gradients[parameter], rtol=1e-4, atol=1e-5 * max(1, largest))
