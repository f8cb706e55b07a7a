"""Margins of choices, and their slopes by what is a user's own: one forward and one backward pass for each choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prlhf.model.encoding import Encoded
from prlhf.model.readings import readings_of
from prlhf.model.rewards import Rewards
from prlhf.model.user_models import UserModel
from prlhf.progress import SILENT, Progress

AT_ONCE = 2**22  # numbers of users' rows, and of their gradients, in memory at a time
MOST_AT_ONCE = 256  # choices


@contextmanager
def standing_in(users: UserModel, rows: Tensor) -> Iterator[list[nn.Parameter]]:
    """Let the user indices 1 to n have `rows` [n, d] while the context lasts; yields the tables, which take gradients.

    Everybody else is out of reach, except for the generic user.
    """
    tables = list(users.row_tables().values())
    before = [(table.weight, table.selected) for table in tables]
    parts = rows.split([table.embedding_dim for table in tables], 1)
    for table, part in zip(tables, parts, strict=True):
        weight = part.to(table.weight)
        if table.first == 0:
            weight = torch.cat([table(torch.zeros(1, dtype=torch.long, device=weight.device)).detach(), weight])
        table.selected, table.weight = None, nn.Parameter(weight)
    try:
        yield [table.weight for table in tables]  # type: ignore[misc]
    finally:
        for table, (weight, selected) in zip(tables, before, strict=True):
            table.weight, table.selected = weight, selected


def margins_of(rewards: Rewards, data: Sequence[Encoded], rows: Tensor, progress: Progress = SILENT) -> Tensor:
    """Margins [n] of n choices, as those of `margins_and_slopes`, without slopes."""
    margins = torch.zeros(len(data)).double()
    for some in _lots(data, rows.shape[1]):
        with standing_in(rewards.model.users, rows[some]), torch.no_grad():
            chosen, rejected = rewards([data[i] for i in some], range(1, len(some) + 1)).double()
        margins[some] = chosen - rejected
        progress.advance(len(some))
    return margins


def _lots(data: Sequence[Encoded], width: int) -> Iterator[list[int]]:
    """The numbers of choices of similar length that are read together, as somebody with `width` numbers each."""
    order = sorted(range(len(data)), key=lambda i: len(data[i].prompt) + len(data[i].chosen))
    each = max(1, min(MOST_AT_ONCE, AT_ONCE // max(width, 1)))
    for start in range(0, len(order), each):
        yield order[start : start + each]


def margins_and_slopes(
    rewards: Rewards, data: Sequence[Encoded], rows: Tensor, loadings: Tensor, progress: Progress = SILENT
) -> tuple[Tensor, Tensor]:
    """For n choices, each read as somebody with a row of its own [n, d]: margins [n], and slopes [n, c] in float64.

    The margin is the reward of the chosen response less that of the rejected one, in units of log-odds; the slopes are
    those by the coordinates z of row + L z, for `loadings` L [d, c].
    """
    margins, slopes = torch.zeros(len(data)).double(), torch.zeros(len(data), loadings.shape[1]).double()
    for some in _lots(data, rows.shape[1]):
        margins[some], gradients = _one_lot(rewards, [data[i] for i in some], rows[some])
        slopes[some] = gradients @ loadings.double()
        progress.advance(len(some))
    return margins, slopes


def _one_lot(rewards: Rewards, data: Sequence[Encoded], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Margins [n], and their gradients [n, d] by the rows."""
    engine, model = rewards.engine, rewards.model
    readings = readings_of(data, range(1, len(data) + 1))
    signs = dict.fromkeys(readings, 0.0)
    for reading, sign in zip(readings, [1.0] * len(data) + [-1.0] * len(data), strict=True):
        signs[reading] += sign  # responses that are equal in tokens cancel
    distinct = list(signs)
    chosen, rejected = rewards.offset(data).double().view(2, len(data))
    margins = rejected - chosen
    with standing_in(model.users, rows) as tables, torch.enable_grad():
        for numbers, layout in engine.parts(distinct, model.users.tokens):
            weights = torch.tensor([rewards.scale * signs[distinct[number]] for number in numbers])
            outputs = model(layout)
            (outputs * weights.to(outputs)).sum().backward()
            owners = torch.tensor([distinct[number].user_index - 1 for number in numbers])
            margins.index_add_(0, owners, (outputs.detach().cpu() * weights).double())
        gradients = [_dense(table)[-len(data) :] for table in tables]
    return margins, torch.cat(gradients, 1).double()


def _dense(table: nn.Parameter) -> Tensor:
    found = table.grad
    if found is None:
        return torch.zeros_like(table, device="cpu")
    return (found.to_dense() if found.is_sparse else found).cpu()
