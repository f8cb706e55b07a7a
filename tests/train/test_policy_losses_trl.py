"""GRPO and RLOO on literal numbers: advantages, clipping and KL are those of TRL's trainers, which are run on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.generate.requests import WriteRequest
from prlhf.online.candidates import Candidate
from prlhf.train.objectives import PolicyGradient
from prlhf.train.policy_gradient import groups_for

# two groups of three responses; the ratio new/old leaves 1 +- 0.2 in both directions, for advantages of both signs
REWARDS = [[1.0, 2.0, 4.5], [0.5, 0.25, -3.0]]
LENGTHS = [[4, 2, 3], [1, 4, 2]]
OLD = [
    [[-1.0, -0.5, -2.0, -0.1], [-0.7, -1.5], [-0.2, -0.9, -3.0]],
    [[-2.0], [-0.4, -0.8, -1.2, -1.6], [-0.3, -2.5]],
]
REFERENCE = [
    [[-1.5, -0.4, -2.2, -0.3], [-0.9, -1.0], [-0.6, -1.9, -2.0]],
    [[-1.0], [-0.5, -0.7, -2.2, -1.1], [-0.9, -2.0]],
]
MOVED = [
    [[0.3, -0.3, 0.1, -0.05], [-0.4, 0.05], [0.5, 0.1, -0.6]],
    [[0.4], [-0.1, 0.2, 0.3, -0.5], [-0.7, 0.6]],
]
NEW = [
    [[o + m for o, m in zip(old, moved, strict=True)] for old, moved in zip(*group, strict=True)]
    for group in zip(OLD, MOVED, strict=True)
]
BETA, CLIP = 0.3, 0.2
Answer = tuple[Tensor, float, Tensor]  # advantages [6], the loss, and its gradient by the new log-probs [6, 4]
Theirs = Callable[[str, str], Answer]


def wide(values: list[list[list[float]]], requires_grad: bool = False) -> Tensor:
    """Ragged log-probs as a tensor [2, 3, 4]."""
    found = torch.zeros(2, 3, 4)
    for i, group in enumerate(values):
        for j, some in enumerate(group):
            found[i, j, : len(some)] = torch.tensor(some)
    return found.requires_grad_(requires_grad)


def ours(objective: str, scale: str) -> Answer:
    config = TrainConfig.model_validate(
        {"objective": objective, "reward": "rm", "beta": BETA, "clip": CLIP, "advantage_scale": scale}
    )
    groups = [
        [
            Candidate(
                0, f"p{i}", "p", "ann", 1, j, "r", LENGTHS[i][j], True, REWARDS[i][j], sampled=[5] * LENGTHS[i][j],
                token_log_probs=OLD[i][j], token_references=REFERENCE[i][j],
            )
            for j in range(3)
        ]
        for i in range(2)
    ]  # fmt: skip
    asked = {(f"p{i}", "ann"): WriteRequest(f"p{i}", "p", [1], "ann", 1) for i in range(2)}
    rows = [group for _, group in groups_for(groups, asked, config)]
    new = wide(NEW, requires_grad=True)
    found = PolicyGradient(SimpleNamespace(model=None), None, config).losses(new.transpose(0, 1), rows)  # type: ignore[arg-type]
    loss = found.losses.mean()
    (gradient,) = torch.autograd.grad(loss, new)
    return torch.cat([row.advantages for row in rows]), loss.item(), gradient.reshape(6, 4)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Theirs:
    """theirs(objective, scale): what TRL's trainer makes of the same numbers, given in place of what its model says."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    common: dict[str, Any] = {
        "per_device_train_batch_size": 6, "num_generations": 3, "num_iterations": 2, "beta": BETA, "epsilon": CLIP,
        "bf16": False, "use_cpu": True, "report_to": "none", "gradient_checkpointing": False,
    }  # fmt: skip

    def answer(objective: str, scale: str) -> Answer:
        folder = str(tmp_path_factory.mktemp("theirs"))
        args: Any = (
            RLOOConfig(folder, **common)
            if objective == "rloo"
            else GRPOConfig(folder, loss_type="grpo", scale_rewards=scale, **common)
        )
        trainer: Any = (RLOOTrainer if objective == "rloo" else GRPOTrainer)(
            AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32),
            [lambda completions, **_: [0.0] * len(completions)],
            args,
            Dataset.from_list([{"prompt": "a"}] * 6),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules="all-linear"),
        )
        trainer.current_gradient_accumulation_steps = 1
        new = wide(NEW, requires_grad=True)
        said = iter([wide(OLD), wide(REFERENCE), new])
        lengths = [length for group in LENGTHS for length in group]
        written = [[5] * length for length in lengths]
        whole = ([[1]] * 6, written, None, ["r"] * 6, None, {}, None, [])
        trainer._generate = lambda prompts: whole if objective == "grpo" else ([[1]] * 6, written, ["r"] * 6)
        trainer._calculate_rewards = lambda *_: torch.tensor(REWARDS).view(6, 1)
        trainer._get_per_token_logps_and_entropies = lambda *_, **__: (next(said).view(6, 4), torch.zeros(6, 4), None)
        inputs = trainer._generate_and_score_completions([{"prompt": "a"}] * 6)
        loss = trainer._compute_loss(trainer.model, inputs)
        (gradient,) = torch.autograd.grad(loss, new)
        return inputs["advantages"], loss.item(), gradient.reshape(6, 4)

    return answer


@pytest.mark.parametrize(("objective", "scale"), [("grpo", "group"), ("grpo", "none"), ("rloo", "none")])
def test_as_trl(theirs: Theirs, objective: str, scale: str) -> None:
    (advantages, loss, gradient), (their_advantages, their_loss, their_gradient) = (
        ours(objective, scale),
        theirs(objective, scale),
    )
    torch.testing.assert_close(advantages, their_advantages)
    assert loss == pytest.approx(their_loss, abs=1e-6)
    torch.testing.assert_close(gradient, their_gradient)
    assert gradient.abs().max() > 0.01


def test_in_units_of_the_users_spread() -> None:
    """The mean variance of the groups of the user: 3.25 and 3.8125 here."""
    advantages, _, _ = ours("grpo", "user")
    plain, _, _ = ours("grpo", "none")
    torch.testing.assert_close(advantages, plain / (((3.25 + 3.8125) / 2) ** 0.5 + 1e-4))
