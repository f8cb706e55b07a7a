"""AdamW that moves the rows of a table one by one: what a step costs, and what is kept, grows with the rows that have
had a gradient and not with the rows there are.

A row without a gradient keeps its value and its state; in torch's AdamW it would drift on by its momentum. A row's
bias correction counts the steps at which that row had a gradient, so that its first step is of the size `lr` whenever
it comes (with the run's count, as in torch's SparseAdam, it would grow with the step at which the user is first met).
Where every row has a gradient at every step this is torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class RowState:
    """AdamW's state of those rows of a table that have had a gradient, in the order in which they first had one."""

    def __init__(self, saved: dict[str, Tensor] | None = None) -> None:
        saved = saved or {}
        self._slots = {row: slot for slot, row in enumerate(saved["rows"].tolist())} if saved else {}
        self._kept = {name: value for name, value in saved.items() if name != "rows"}

    @property
    def rows(self) -> Tensor:
        return torch.tensor(list(self._slots), dtype=torch.long)

    def slots(self, rows: Tensor, like: Tensor) -> Tensor:
        """Where `rows` [n] have their state; new ones get a state of zeros, as wide and on the device of `like`."""
        found = [self._slots.setdefault(row, len(self._slots)) for row in rows.tolist()]
        for name, width in (("step", 1), ("exp_avg", like.shape[1]), ("exp_avg_sq", like.shape[1])):
            kept = self._kept.get(name, like.new_zeros(0, width)).to(like.device)
            if len(kept) < len(self._slots):  # twice the room, so that not every new row moves all the others
                room = like.new_zeros(max(len(self._slots), 2 * len(kept)), width)
                room[: len(kept)] = kept
                kept = room
            self._kept[name] = kept
        return torch.tensor(found, dtype=torch.long, device=like.device)

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def to_save(self) -> dict[str, Tensor]:
        """Tensors of as many rows as have a state, without the room for more."""
        return {"rows": self.rows} | {name: kept[: len(self._slots)].clone() for name, kept in self._kept.items()}


class RowAdamW(torch.optim.AdamW):
    """torch's AdamW for dense gradients, and the same row by row for parameters [m, width] with sparse ones."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options)
        self._rows: dict[Tensor, RowState] = {}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, on gradients that are there already."""
        tables = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if _is_sparse(p)]
        for table, _, _ in tables:
            table.grad = None  # torch leaves alone what has no gradient
        super().step()
        for table, grad, group in tables:
            table.grad = grad
            _step_rows(table, grad.coalesce(), self._rows.setdefault(table, RowState()), group)

    def touched(self, table: Tensor) -> Tensor:
        """The rows of `table` that have had a gradient."""
        return self._rows.get(table, RowState()).rows

    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        rows = {i: self._rows[p].to_save() for i, p in enumerate(self._parameters()) if p in self._rows}
        return packed | {"state": packed["state"] | rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = {i: state for i, state in state_dict["state"].items() if "rows" in state}
        dense = {i: state for i, state in state_dict["state"].items() if i not in rows}
        super().load_state_dict(state_dict | {"state": dense})  # it would turn row numbers into fp32
        parameters = self._parameters()
        self._rows = {parameters[i]: RowState(state) for i, state in rows.items()}

    def _parameters(self) -> list[Tensor]:
        """In the order in which torch numbers them in a state dict."""
        return [p for group in self.param_groups for p in group["params"]]


@torch.no_grad()
def _step_rows(table: Tensor, grad: Tensor, state: RowState, group: dict[str, Any]) -> None:
    """Loshchilov & Hutter (2019), algorithm 2, on the rows of `grad`, which is coalesced."""
    rows, g, (beta1, beta2) = grad.indices()[0], grad.values(), group["betas"]
    at = state.slots(rows, like=g)
    step = state["step"][at] + 1
    first = state["exp_avg"][at].lerp(g, 1 - beta1)
    second = state["exp_avg_sq"][at].mul(beta2).addcmul(g, g, value=1 - beta2)
    state["step"][at], state["exp_avg"][at], state["exp_avg_sq"][at] = step, first, second
    spread = (second / (1 - beta2**step)).sqrt() + group["eps"]
    moved = group["lr"] * (first / (1 - beta1**step)) / spread
    table[rows] = table[rows] * (1 - group["lr"] * group["weight_decay"]) - moved


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of all `parameters` together to a norm of at most `max_norm`; returns the norm before.

    As torch.nn.utils.clip_grad_norm_, which refuses sparse gradients. Those count with each row's sum.
    """
    values = []
    for parameter in parameters:
        if _is_sparse(parameter):
            parameter.grad = parameter.grad.coalesce()  # type: ignore[union-attr]
        if parameter.grad is not None:
            values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.nn.utils.get_total_norm(values)
    for value in values:
        value.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).to(value.device))
    return norm


def _is_sparse(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse
