"""AdamW by rows against torch's, where both are the same, and by hand where they are not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prlhf.model.user_rows import SparseRows
from prlhf.train.optimizer import RowAdamW, clip_grad_norm

OPTIONS: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table_of(rows: int, width: int = 3) -> SparseRows:
    return SparseRows(random(rows, width), first=0)


def backward(table: SparseRows, users: Sequence[int], seed: int = 0) -> None:
    rows = table(torch.tensor(users, dtype=torch.long))
    (rows * random(*rows.shape, seed=seed)).sum().backward()


def train(table: SparseRows, steps: Sequence[Sequence[int]], **options: Any) -> RowAdamW:
    """A step for each list of users."""
    optimizer = RowAdamW(table.parameters(), **(OPTIONS | options))
    for i, users in enumerate(steps):
        optimizer.zero_grad()
        backward(table, users, seed=i)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_with_every_row_in_every_step_it_is_adamw(decay: float) -> None:
    """Beside a dense parameter, under a schedule, and with some rows met twice a step."""
    table, dense = table_of(4), nn.Parameter(random(2, 2))
    same = nn.Parameter(table.weight.detach().clone())
    same_dense = nn.Parameter(dense.detach().clone())
    options = OPTIONS | {"weight_decay": decay}
    mine, theirs = RowAdamW([table.weight, dense], **options), torch.optim.AdamW([same, same_dense], **options)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in (mine, theirs)]
    for i in range(20):
        users = torch.tensor([3, 1, 0, 2, 1])
        for optimizer, rows, beside in ((mine, table(users), dense), (theirs, same[users], same_dense)):
            optimizer.zero_grad()
            ((rows * random(5, 3, seed=i)).sum() + (beside * random(2, 2, seed=i)).sum()).square().backward()
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert (table.weight - random(4, 3)).abs().mean() > 0.1
    torch.testing.assert_close(table.weight, same, rtol=0, atol=1e-6)
    torch.testing.assert_close(dense, same_dense, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=25),
    st.sampled_from([0.0, 0.2]),
    st.sets(st.integers(0, 24)),
)
def test_rows_met_now_and_then_are_those_of_dense_gradients(
    steps: list[list[int]], decay: float, settled: set[int]
) -> None:
    """Under a schedule, whenever rows catch up: those of a step before its forward pass, all of them now and then."""
    table = table_of(5)
    same = nn.Parameter(table.weight.detach().clone())
    options = OPTIONS | {"weight_decay": decay}
    mine, theirs = RowAdamW(table.parameters(), **options), torch.optim.AdamW([same], **options)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)) for o in (mine, theirs)]
    for i, chosen in enumerate(steps):
        users = torch.tensor(chosen, dtype=torch.long)
        mine.catch_up(table.weight, chosen)
        for optimizer, rows in ((mine, table(users)), (theirs, same[users])):
            optimizer.zero_grad()
            (rows.square() * random(*rows.shape, seed=i)).sum().backward()
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        if i in settled:
            mine.settle()
    mine.settle()
    for row in range(5) if not decay else set(steps[0]):  # weight decay begins when a row is first met
        torch.testing.assert_close(table.weight[row], same[row], rtol=0, atol=1e-5)


def test_rows_by_hand() -> None:
    """beta = (0.5, 0.5), no eps, lr 0.1. Row 0 has a gradient of 2 in the first step: m = 1, v = 2, over 1 - 0.5 both:
    2 / sqrt(4) = 1. In the second step it drifts: m = 0.5, v = 1, over 0.75: 0.66667 / sqrt(1.33333) = 0.57735. In the
    third it has 4: m = 2.25, v = 8.5, over 0.875: 2.57143 / sqrt(9.71429) = 0.82503. Row 1 has -5 in the second:
    m = -2.5, v = 12.5, over 0.75: -3.33333 / sqrt(16.66667) = -0.81650."""
    table = SparseRows(torch.zeros(3, 1), first=0)
    optimizer = RowAdamW(table.parameters(), lr=0.1, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0)
    seen = []
    for row, gradient in ((0, 2.0), (1, -5.0), (0, 4.0)):
        optimizer.zero_grad()
        optimizer.catch_up(table.weight, [row])
        seen.append(table.weight.flatten().tolist())
        (table(torch.tensor([row])) * gradient).sum().backward()
        optimizer.step()
    seen.append(table.weight.flatten().tolist())
    expected = [[0, 0, 0], [-0.1, 0, 0], [-0.157735, 0.08165, 0], [-0.240238, 0.08165, 0]]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected), rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))
def test_rows_that_are_not_met_stay_as_they_are(steps: list[list[int]]) -> None:
    table = table_of(10)
    optimizer = train(table, steps)
    met = {row for users in steps for row in users}
    assert set(optimizer.touched(table.weight).tolist()) == met
    start = random(10, 3)
    assert {row for row in range(10) if not torch.equal(table.weight[row], start[row])} == met


def test_accumulated_gradients_are_one_step() -> None:
    whole, parts = table_of(6), table_of(6)
    users, factors = [1, 4, 1, 5], random(4, 3)
    optimizers = [RowAdamW(table.parameters(), **OPTIONS) for table in (whole, parts)]
    (whole(torch.tensor(users)) * factors).sum().backward()
    for half in (slice(0, 2), slice(2, 4)):
        (parts(torch.tensor(users[half])) * factors[half]).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(whole.weight, parts.weight, rtol=0, atol=1e-6)
    assert optimizers[1].state_dict()["state"][0]["step"].flatten().tolist() == [1, 1, 1]


# ---- the state ----


@pytest.mark.parametrize("users", [10, 1_000_000])
def test_what_is_saved_does_not_grow_with_the_users(users: int) -> None:
    optimizer = train(SparseRows(torch.zeros(users, 3), first=0), [[1, 2], [9, 1], [users - 1, 5]])
    state = optimizer.state_dict()["state"][0]
    assert state["rows"].tolist() == ([1, 2, 9, 5] if users == 10 else [1, 2, 9, 5, users - 1])
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "rows": (len(state["rows"]),), "rates": (3,), "step": (len(state["rows"]), 1),
        "exp_avg": (len(state["rows"]), 3), "exp_avg_sq": (len(state["rows"]), 3),
    }  # fmt: skip
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert len(file.getvalue()) < 5000


def test_saved_and_loaded_goes_on_to_the_last_bit() -> None:
    """Through a file, as Trainer reads it; with rows that fp32 cannot count (2^24 + 1)."""
    many = 2**24 + 2
    steps = [[1, many - 1], [3], [many - 1, 1], [2, 3], [1, 2]]
    table, again = SparseRows(torch.zeros(many, 1), first=0), SparseRows(torch.zeros(many, 1), first=0)
    train(table, steps)
    before = train(again, steps[:3])
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    after = RowAdamW(again.parameters(), lr=9.0)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    for i, users in enumerate(steps[3:], start=3):
        after.zero_grad()
        backward(again, users, seed=i)
        after.step()
    assert after.touched(again.weight).tolist() == [1, many - 1, 3, 2]
    assert torch.equal(table.weight[after.touched(again.weight)], again.weight[after.touched(again.weight)])


# ---- clipping ----


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), max_size=8), st.sampled_from([0.1, 1.0, 1e6]), st.booleans())
def test_clipping_is_that_of_dense_gradients(users: list[int], limit: float, twice: bool) -> None:
    """Rows met several times, in one pass or in two, count with their sum."""
    table, dense = table_of(6), nn.Parameter(random(2, 2))
    same, same_dense = nn.Parameter(random(6, 3)), nn.Parameter(random(2, 2))
    for _ in range(1 + twice):
        backward(table, users)
        (same[torch.tensor(users, dtype=torch.long)] * random(len(users), 3)).sum().backward()
        for parameter in (dense, same_dense):
            parameter.sum().backward()
    mine = clip_grad_norm([table.weight, nn.Parameter(torch.ones(1)), dense], limit)
    theirs = torch.nn.utils.clip_grad_norm_([same, same_dense], limit)
    torch.testing.assert_close(mine, theirs)
    assert table.weight.grad is not None
    torch.testing.assert_close(table.weight.grad.to_dense(), same.grad)
    torch.testing.assert_close(dense.grad, same_dense.grad)
