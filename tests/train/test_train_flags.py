"""Each setting of training arrives where it acts. What it does there is for the tests of that place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prlhf.dataset import read_prepared
from prlhf.model.encoding import Encoded
from prlhf.progress import SILENT
from prlhf.train import run
from prlhf.train.encode import encode
from prlhf.train.losses import preference_loss
from prlhf.train.sft import sft_arguments
from prlhf.train.terms import DPO
from prlhf.train.trainer import training_arguments

MakeConfig = Callable[..., Any]

BATCH = [Encoded([], [1, 2], [3, 4, 5], [6, 7], 1), Encoded([], [1], [3], [6, 7, 8, 9], 2)]
VALUES = torch.tensor([[-3.0, -1.0], [-2.0, -5.0]])  # log-probs of the chosen, then of the rejected
REFERENCE = torch.tensor([[-3.5, -0.5], [-1.0, -4.0]])


@pytest.mark.parametrize(
    ("key", "value", "name", "expected"),
    [
        ("batch_size", 3, "per_device_train_batch_size", 3),
        ("accumulation", 3, "gradient_accumulation_steps", 3),
        ("epochs", 7, "num_train_epochs", 7),
        ("max_steps", 11, "max_steps", 11),
        ("max_steps", None, "max_steps", -1),
        ("lr", 0.25, "learning_rate", 0.25),
        ("weight_decay", 0.25, "weight_decay", 0.25),
        ("schedule", "cosine", "lr_scheduler_type", "cosine"),
        ("schedule", "constant", "lr_scheduler_type", "constant_with_warmup"),
        ("warmup_steps", 5, "warmup_steps", 5),
        ("max_grad_norm", 0.25, "max_grad_norm", 0.25),
        ("seed", 9, "seed", 9),
        ("seed", 9, "data_seed", 9),
        ("save_every", 4, "save_steps", 4),
        ("eval_every", 4, "eval_steps", 4),
        ("eval_every", 4, "eval_strategy", "steps"),
        ("eval_every", 0, "eval_strategy", "no"),
        ("report_to", "none", "report_to", []),
        ("report_to", "tensorboard", "report_to", ["tensorboard"]),
    ],
)
def test_what_the_loop_is_told(
    tmp_path: Path, make_config: MakeConfig, key: str, value: Any, name: str, expected: Any
) -> None:
    assert getattr(training_arguments(make_config(tmp_path, **{key: value}), tmp_path), name) == expected


@pytest.mark.parametrize("on", [False, True])
def test_what_supervised_fine_tuning_is_told(tmp_path: Path, make_config: MakeConfig, on: bool) -> None:
    config = make_config(tmp_path, objective="sft", gradient_checkpointing=on, accumulation=3)
    arguments = sft_arguments(config, tmp_path)
    assert (arguments.activation_checkpointing, arguments.gradient_accumulation_steps) == (on, 3)
    assert (arguments.max_length, arguments.packing, arguments.bf16) == (None, False, False)


def dpo(config: Any) -> DPO:
    reference: Any = SimpleNamespace(log_probs=lambda batch: REFERENCE.flatten())
    engine: Any = SimpleNamespace(model=None, values=lambda readings: VALUES.flatten())
    return DPO(engine, reference, config)


@pytest.mark.parametrize(
    ("name", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("hinge", 0.0), ("ipo", 0.0)]
)
@pytest.mark.parametrize("nll", [0.0, 0.25])
def test_loss_beta_smoothing_and_nll(
    tmp_path: Path, make_config: MakeConfig, name: str, smoothing: float, nll: float
) -> None:
    config = make_config(tmp_path, loss=name, label_smoothing=smoothing, beta=0.3, nll=nll)
    term = dpo(config).term(VALUES, BATCH)
    lengths = torch.tensor([[3, 1], [2, 4]])
    losses = preference_loss(name, VALUES - REFERENCE, lengths, 0.3, smoothing) + nll * torch.tensor([1.0, 1.0])
    torch.testing.assert_close(term.losses, losses)
    torch.testing.assert_close(term.margins, 0.3 * torch.tensor([1.5, 0.5]))
    torch.testing.assert_close(term.logs["nll_chosen"], torch.tensor([1.0, 1.0]))  # per token


def test_rewards_are_in_units_of_beta(tmp_path: Path, make_config: MakeConfig) -> None:
    rewards = dpo(make_config(tmp_path, beta=0.3)).rewards(BATCH, [1, 2])
    torch.testing.assert_close(rewards, 0.3 * (VALUES - REFERENCE))


@pytest.mark.parametrize("on", [False, True])
def test_the_reference_cache_is_asked_for(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    opened = []
    monkeypatch.setattr(run, "open_cache", lambda lm, progress: opened.append(lm))
    engine: Any = SimpleNamespace(model=SimpleNamespace(lm="the base"))
    run.reference_of(engine, make_config(tmp_path, reference_cache=on), SILENT)
    assert opened == ["the base"] * on


@pytest.mark.parametrize(("limit", "kept"), [(None, None), (2, 2)])
def test_eval_limit(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, limit: int | None, kept: int | None
) -> None:
    data = read_prepared(prepared)
    assert len(data.eval) >= 3
    encoder = SimpleNamespace(comparison=lambda row: Encoded([], [1], [2], [3], row.user_index))
    policy: Any = SimpleNamespace(config=make_config(tmp_path, eval_limit=limit), encoder=lambda: encoder)
    _, held_out, _ = encode(policy, data)
    assert len(held_out.encoded) == (kept or len(data.eval))
