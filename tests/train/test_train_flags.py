"""Each setting of training arrives where it acts. What it does there is for the tests of that place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from losses import loop_of, moved_policy

from prlhf.dataset import read_prepared
from prlhf.model.encoding import Encoded
from prlhf.progress import SILENT
from prlhf.train import metrics, optimizer, run
from prlhf.train.batches import ByPrompt, batches_of
from prlhf.train.encode import encode
from prlhf.train.loop import Loop
from prlhf.train.losses import preference_loss
from prlhf.train.objectives import DPO

MakeConfig = Callable[..., Any]

BATCH = [Encoded([], [1, 2], [3, 4, 5], [6, 7], 1), Encoded([], [1], [3], [6, 7, 8, 9], 2)]
VALUES = torch.tensor([[-3.0, -1.0], [-2.0, -5.0]])  # log-probs of the chosen, then of the rejected
REFERENCE = torch.tensor([[-3.5, -0.5], [-1.0, -4.0]])


def loop_with(make_config: MakeConfig, folder: Path, **settings: Any) -> Loop:
    """A loop over eleven comparisons that has made no step."""
    config = make_config(folder, **settings)
    return loop_of(moved_policy(config), read_prepared(Path(config.dataset)).train[:11])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"batch_size": 3}, [[3], [3], [3], [2], [3]]),
        ({"batch_size": 2, "accumulation": 3}, [[2, 2, 2], [2, 2, 1], [2, 2, 2]]),
    ],
)
def test_batches_of_a_step(
    tmp_path: Path, make_config: MakeConfig, settings: dict[str, Any], sizes: list[list[int]]
) -> None:
    loop = loop_with(make_config, tmp_path, **settings)
    steps = islice(batches_of(loop.train_set, loop.config), len(sizes))
    assert [[len(batch) for batch in batches] for batches in steps] == sizes


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_size": 3, "max_steps": None, "epochs": 7}, 28),
        ({"batch_size": 2, "accumulation": 3, "max_steps": None, "epochs": 1.5}, 3),
        ({"max_steps": 11, "epochs": 7}, 11),
    ],
)
def test_how_many_steps(tmp_path: Path, make_config: MakeConfig, settings: dict[str, Any], steps: int) -> None:
    assert loop_with(make_config, tmp_path, **settings).steps == steps


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [0, 0.5, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_of_each_step(
    tmp_path: Path, make_config: MakeConfig, schedule: str, warmup: int, expected: list[float]
) -> None:
    loop = loop_with(make_config, tmp_path, lr=0.25, schedule=schedule, warmup_steps=warmup, max_steps=4)
    loop.run()
    rates = [row["learning_rate"] for row in metrics.read(loop.metrics_path)]
    assert rates == pytest.approx([0.25 * part for part in expected], abs=1e-6)


def test_gradients_are_clipped(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    clip = optimizer.clip_grad_norm
    monkeypatch.setattr("prlhf.train.loop.clip_grad_norm", lambda given, most: asked.append(most) or clip(given, most))
    loop_with(make_config, tmp_path, max_grad_norm=0.25, max_steps=1).run()
    assert asked == [0.25]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_orders_the_rows(tmp_path: Path, make_config: MakeConfig, grouped: bool) -> None:
    """As torch's RandomSampler does with that seed, or by prompt; every epoch otherwise."""
    loop = loop_with(make_config, tmp_path, seed=9, batch_size=11, group_by_prompt=grouped)
    first, second = islice(batches_of(loop.train_set, loop.config), 2)
    orders = [[loop.train_set.encoded.index(row) for row in batch] for (batch,) in (first, second)]
    if grouped:
        expected = [list(ByPrompt([row.prompt_id for row in loop.train_set.rows], 9, epoch)) for epoch in (0, 1)]
    else:
        expected = [torch.randperm(11, generator=torch.Generator().manual_seed(9 + epoch)).tolist() for epoch in (0, 1)]
    assert orders == expected
    assert orders[0] != orders[1]


def test_the_seed_is_that_of_dropout(tmp_path: Path, make_config: MakeConfig) -> None:
    loop_with(make_config, tmp_path, seed=9)
    assert torch.initial_seed() == 9


@pytest.mark.parametrize(("every", "steps"), [(2, {2, 4, 5}), (3, {3, 5})])
def test_checkpoints_and_evaluations(tmp_path: Path, make_config: MakeConfig, every: int, steps: set[int]) -> None:
    loop = loop_with(make_config, tmp_path, save_every=every, eval_every=every, max_steps=5, keep_checkpoints=9)
    loop.run()
    assert {int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoints/*")} == steps
    evaluated = {row["step"] for row in metrics.read(loop.metrics_path) if "eval" in row}
    assert evaluated == steps - ({5} if 5 % every else set())


@pytest.mark.parametrize(("keep", "steps"), [(1, {5}), (3, {3, 4, 5})])
def test_how_many_checkpoints_stay(tmp_path: Path, make_config: MakeConfig, keep: int, steps: set[int]) -> None:
    loop_with(make_config, tmp_path, save_every=1, max_steps=5, keep_checkpoints=keep).run()
    assert {int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoints/*")} == steps


def test_no_evaluations(tmp_path: Path, make_config: MakeConfig) -> None:
    loop = loop_with(make_config, tmp_path, eval_every=0, max_steps=2)
    loop.run()
    assert not any("eval" in row for row in metrics.read(loop.metrics_path))


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
    found = dpo(config).losses(VALUES, BATCH)
    lengths = torch.tensor([[3, 1], [2, 4]])
    losses = preference_loss(name, VALUES - REFERENCE, lengths, 0.3, smoothing) + nll * torch.tensor([1.0, 1.0])
    torch.testing.assert_close(found.losses, losses)
    torch.testing.assert_close(found.logs["margin"], 0.3 * torch.tensor([1.5, 0.5]))
    torch.testing.assert_close(found.logs["nll_chosen"], torch.tensor([1.0, 1.0]))  # per token
    torch.testing.assert_close(found.logs["log_ratio_chosen"], (VALUES - REFERENCE)[0])
    torch.testing.assert_close(found.logs["log_ratio_rejected"], (VALUES - REFERENCE)[1])


def test_rewards_are_in_units_of_beta(tmp_path: Path, make_config: MakeConfig) -> None:
    rewards = dpo(make_config(tmp_path, beta=0.3)).rewards(BATCH, [1, 2])
    torch.testing.assert_close(rewards, 0.3 * (VALUES - REFERENCE))


@pytest.mark.parametrize("on", [False, True])
def test_the_reference_cache_is_asked_for(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    opened = []
    monkeypatch.setattr(run, "open_cache", lambda lm, progress: opened.append(lm))
    engine: Any = SimpleNamespace(model=SimpleNamespace(lm="the base"), reference=None)
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
