"""Whole training runs: row-sparse users are dense ones where all are met, and those who are not met cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loop_of
from safetensors.torch import load_file

from prlhf.dataset import read_prepared
from prlhf.model.checkpoint import Policy, build_policy
from prlhf.model.user_rows import SparseRows
from prlhf.model.weights import load_weights
from prlhf.train import batches, metrics

MakeConfig = Callable[..., Any]
KINDS: dict[str, dict[str, Any]] = {
    "individual": {"user_model": "individual", "user_init": "random"},
    "cluster": {"user_model": "cluster", "user_init": "random"},
    "gates": {"user_in": "adapter", "gate_lr": 1e-2},
}


def table_of(policy: Policy) -> SparseRows:
    return next(module for module in policy.model.users.modules() if isinstance(module, SparseRows))


def policy_of(config: Any, users: int) -> Policy:
    """ann, bob and cat, and others who have no comparison."""
    return build_policy(config, ["ann", "bob", "cat", *(f"u{i}" for i in range(4, users + 1))], {})


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_are_met_it_is_dense_training(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, kind: str
) -> None:
    """Three of three users in every step, in two passes; gradients are clipped, rates follow a schedule."""
    options: dict[str, Any] = {"batch_size": 6, "accumulation": 2, "max_grad_norm": 0.5, "max_steps": 8, "lr": 1e-3}
    options |= {} if kind == "gates" else {"user_lr": 1e-2}
    rows, found = read_prepared(prepared).train, {}
    for sparse in (True, False):
        config = make_config(tmp_path / str(sparse), **(options | KINDS[kind]))
        policy = policy_of(config, 3)
        table_of(policy).sparse = sparse
        loop = loop_of(policy, rows)
        loop.run()
        norms = [row["grad_norm"] for row in metrics.read(loop.metrics_path) if "grad_norm" in row]
        found[sparse] = torch.tensor(norms), policy.model.users.state_dict()
    assert found[True][0].max() > 0.5  # some were clipped
    torch.testing.assert_close(found[True][0], found[False][0], rtol=1e-4, atol=1e-5)
    for name, value in found[True][1].items():
        torch.testing.assert_close(value, found[False][1][name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("eval_every", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_user_met_early_drifts_as_in_dense_training(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, monkeypatch: pytest.MonkeyPatch, kind: str, eval_every: int
) -> None:
    """ann is met in the first two steps of five; her row moves on by its momentum, and is saved and scored there."""
    data = read_prepared(prepared).train
    rows = [row for name in ("ann", "bob") for row in data if row.user_id == name][:8]
    monkeypatch.setattr(batches, "order_of", lambda *_: [0, 1, 2, 3, 4, 5, 6, 7, 4, 5])
    found = {}
    for sparse in (True, False):
        options: dict[str, Any] = KINDS[kind] | {"max_steps": 5, "save_every": 5}
        config = make_config(tmp_path / str(sparse), **options, eval_every=eval_every)
        policy = policy_of(config, 3)
        table_of(policy).sparse = sparse
        loop = loop_of(policy, rows)
        loop.run()
        margins = [row["eval"]["margin_by_user"]["ann"] for row in metrics.read(loop.metrics_path) if "eval" in row]
        found[sparse] = table_of(policy).weight.detach(), margins
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=1e-5)
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-3)
    assert len(found[True][1]) == bool(eval_every)


@pytest.mark.parametrize("kind", KINDS)
def test_users_who_are_not_met_cost_nothing(tmp_path: Path, make_config: MakeConfig, prepared: Path, kind: str) -> None:
    """Their rows stay, to the bit; neither optimizer.pt nor the checkpoint's user model holds anything of them."""
    config = make_config(tmp_path, **KINDS[kind], max_steps=6, weight_decay=0.1)
    policy, fresh = policy_of(config, 200), policy_of(config, 200)
    start = table_of(policy).weight.detach().clone()
    loop_of(policy, read_prepared(prepared).train).run()
    met = [0, 1, 2, 3] if kind == "cluster" else [0, 1, 2]  # the generic user has weights
    changed = (table_of(policy).weight != start).any(1).nonzero().flatten().tolist()
    assert changed == met

    checkpoint = config.folder / "checkpoints/checkpoint-6"
    saved = load_file(checkpoint / "user_model.safetensors")
    rows = next(value for name, value in saved.items() if name.endswith(".rows"))
    assert sorted(rows.tolist()) == met
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    (kept,) = (s for s in state.values() if "rows" in s)
    assert {len(value) for name, value in kept.items() if name != "rates"} == {len(met)}
    assert len(kept["rates"]) == 6  # a number a step
    load_weights(fresh.model, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), policy.model.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_with_other_users_is_uninterrupted(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """cat is first met after the checkpoint, and so is a state of her own."""
    rows = [row for row in read_prepared(prepared).train if row.user_id != "cat"][:4]
    rows += [row for row in read_prepared(prepared).train if row.user_id == "cat"]
    monkeypatch.setattr(batches, "order_of", lambda *_: list(range(8)))

    def run(name: str, resume: Path | None) -> Policy:
        config = make_config(tmp_path / name, **KINDS[kind], max_steps=4, save_every=2)
        policy = policy_of(config, 50)
        loop = loop_of(policy, rows)
        if resume:
            loop.resume(resume)
        loop.run()
        return policy

    whole = run("whole", None)
    first = load_file(tmp_path / "whole/checkpoints/checkpoint-2/user_model.safetensors")
    assert sorted(next(v for n, v in first.items() if n.endswith(".rows")).tolist()) == (
        [0, 1, 2] if kind == "cluster" else [0, 1]
    )
    resumed = run("resumed", tmp_path / "whole/checkpoints/checkpoint-2")
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
