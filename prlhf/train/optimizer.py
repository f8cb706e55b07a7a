"""Optimizer and schedule of a run: torch's AdamW, at a cost that grows with the users in the batches, not with all.

AdamW also moves a row in steps in which it has no gradient: by its momentum, which decays. Here such a row is left
alone until its value is needed, and then makes all missed steps at once (`catch_up`, `settle`): the result is that of
dense gradients. These steps matter: on demo-crowd (1,500 users, 8 comparisons each) they are most of what a rare user
learns from a comparison, and accuracy for seen users fell from 80 to 75 % without them. A row that never had a
gradient has no state and does not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.personalized import Personalized
from prlhf.model.sharding import as_shards_of, on_first

FADED = 1e-8  # momentum that has decayed to this fraction moves nothing


class RowState:
    """AdamW's state of the rows of a table that have had a gradient, in the order of their first gradient.

    `rates` are the learning rates of the table's steps so far; a row's `step` is the last step that it has made.
    """

    def __init__(self, saved: dict[str, Tensor] | None = None) -> None:
        saved = dict(saved or {})
        self.rates: list[float] = saved.pop("rates").tolist() if saved else []
        self._slots = {row: slot for slot, row in enumerate(saved["rows"].tolist())} if saved else {}
        self._kept = {name: value for name, value in saved.items() if name != "rows"}

    @property
    def rows(self) -> Tensor:
        """The rows that have moments [N], in the order of their first gradient."""
        return torch.tensor(list(self._slots), dtype=torch.long)

    def slots(self, rows: Tensor, like: Tensor) -> Tensor:
        """The places [n] of the state of `rows` [n]; new rows get zeros, of the width and on the device of `like`."""
        found = [self._slots.setdefault(row, len(self._slots)) for row in rows.tolist()]
        for name, width in (("step", 1), ("exp_avg", like.shape[1]), ("exp_avg_sq", like.shape[1])):
            kept = self._kept.get(name, like.new_zeros(0, width)).to(like.device)
            if len(kept) < len(self._slots):  # twice the space, so that not every new row moves all others
                larger = like.new_zeros(max(len(self._slots), 2 * len(kept)), width)
                larger[: len(kept)] = kept
                kept = larger
            self._kept[name] = kept
        return torch.tensor(found, dtype=torch.long, device=like.device)

    def of(self, rows: Tensor, like: Tensor) -> dict[str, Tensor]:
        """A copy of the state of known `rows` [n]; `like`: see `slots`."""
        at = self.slots(rows, like)
        return {name: kept[at] for name, kept in self._kept.items()}

    def put(self, rows: Tensor, state: dict[str, Tensor]) -> None:
        """Set the state of known `rows` [n] to what `of` returned."""
        for name, kept in state.items():
            self._kept[name][self.slots(rows, kept)] = kept

    def known(self, rows: Iterable[int]) -> Tensor:
        """The `rows` that have a state."""
        return torch.tensor([row for row in rows if row in self._slots], dtype=torch.long)

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def to_save(self) -> dict[str, Tensor]:
        """The state as tensors, without the space for more rows."""
        found = {"rows": self.rows, "rates": torch.tensor(self.rates, dtype=torch.float64)}
        return found | {name: kept[: len(self._slots)].clone() for name, kept in self._kept.items()}


class RowAdamW(torch.optim.AdamW):
    """torch's AdamW for dense gradients, and the same rule row by row for parameters [m, width] with sparse ones."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options)
        self._rows: dict[Tensor, RowState] = {}

    @override
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients that were computed."""
        tables = [(p, p.grad, group) for group in self.param_groups for p in group["params"] if _is_sparse(p)]
        for table, _, _ in tables:
            table.grad = None  # torch skips parameters without a gradient
        super().step()
        for table, grad, group in tables:
            table.grad = grad
            _step_rows(table, grad.coalesce(), self._rows.setdefault(table, RowState()), group)

    def catch_up(self, table: Tensor, rows: Iterable[int]) -> None:
        """Let `rows` of `table` make the steps that they missed, before their values are read."""
        state = self._rows.get(table)
        if state:
            group = next(group for group in self.param_groups if any(p is table for p in group["params"]))
            _catch_up(table, state, state.known(rows), group)

    def settle(self) -> None:
        """Let all rows make the steps that they missed, before the tables are saved or evaluated."""
        for table, state in self._rows.items():
            self.catch_up(table, state.rows.tolist())

    @contextmanager
    def settled(self, rows: Mapping[Tensor, Sequence[int]]) -> Iterator[None]:
        """Let `rows` of each table be read as if they had caught up while the context lasts.

        Afterwards they and their state are as before: two steps at once are rounded otherwise than one by one.
        """
        before = [(table, *self._kept(table, some)) for table, some in rows.items() if table in self._rows]
        for table, some in rows.items():
            self.catch_up(table, some)
        try:
            yield
        finally:
            for table, known, values, state in before:
                with torch.no_grad():
                    table[known] = values
                self._rows[table].put(known, state)

    def _kept(self, table: Tensor, rows: Iterable[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Those `rows` of `table` that have a state, on the table's device; their values, and their state."""
        known = self._rows[table].known(rows).to(table.device)
        return known, table.detach()[known], self._rows[table].of(known, like=table)

    def touched(self, table: Tensor) -> Tensor:
        """The rows of `table` that have had a gradient."""
        return self._rows.get(table, RowState()).rows

    @override
    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        rows = {i: self._rows[p].to_save() for i, p in enumerate(self._parameters()) if p in self._rows}
        dense = {i: {name: on_first(value) for name, value in state.items()} for i, state in packed["state"].items()}
        return packed | {"state": dense | rows}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows = {i: state for i, state in state_dict["state"].items() if "rows" in state}
        dense = {i: state for i, state in state_dict["state"].items() if i not in rows}
        parameters = self._parameters()
        shards = {i: _sharded_as(parameters[i], state) for i, state in dense.items()}
        super().load_state_dict(state_dict | {"state": shards})  # it would turn row numbers into fp32
        self._rows = {parameters[i]: RowState(state) for i, state in rows.items()}

    def _parameters(self) -> list[Tensor]:
        """All parameters, in the order of torch's numbers in a state dict."""
        return [p for group in self.param_groups for p in group["params"]]


def optimizer_of(model: Personalized, config: TrainConfig) -> RowAdamW:
    """AdamW for `model`; what stands beside the language model has rates of its own and no weight decay."""
    groups = [{"params": _trained(model.lm.parameters()), "lr": config.lr, "weight_decay": config.weight_decay}]
    groups += [{"params": _trained(some), "lr": rate, "weight_decay": 0.0} for some, rate in model.rates(config)]
    return RowAdamW([group for group in groups if group["params"]], lr=config.lr)


def schedule_of(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """The learning rates of a run of `steps` optimizer steps: a linear warmup, then `config.schedule`."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule: LRScheduler = get_scheduler(name, optimizer, config.warmup_steps, steps)
    return schedule


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad and p.numel() > 0]


def rows_of(model: Personalized, users: Iterable[int]) -> dict[Tensor, list[int]]:
    """The rows of `users` in each of the users' tables, in ascending order."""
    tables = model.users.row_tables().values()
    return {table.weight: sorted(u - table.first for u in users if u >= table.first) for table in tables}


@torch.no_grad()
def _step_rows(table: Tensor, grad: Tensor, state: RowState, group: dict[str, Any]) -> None:
    """One step of the rows that the coalesced `grad` has."""
    rows, g, (beta1, beta2) = grad.indices()[0], grad.values(), group["betas"]
    _catch_up(table, state, state.known(rows.tolist()), group)
    state.rates.append(group["lr"])
    at = state.slots(rows, like=g)
    state["step"][at] = float(len(state.rates))
    state["exp_avg"][at] = first = state["exp_avg"][at].lerp(g, 1 - beta1)
    state["exp_avg_sq"][at] = second = state["exp_avg_sq"][at].mul(beta2).addcmul(g, g, value=1 - beta2)
    table[rows] = _moved(table[rows], first, second, state["step"][at], state["step"].new_tensor(group["lr"]), group)


@torch.no_grad()
def _catch_up(table: Tensor, state: RowState, rows: Tensor, group: dict[str, Any]) -> None:
    """Make the steps without a gradient that `rows`, all with a state, have missed."""
    rows, now, (beta1, beta2) = rows.to(table.device), len(state.rates), group["betas"]
    if not len(rows):
        return
    at = state.slots(rows, like=table)
    value, first, second, step = table[rows], state["exp_avg"][at], state["exp_avg_sq"][at], state["step"][at]
    rates = step.new_tensor([*state.rates, 0.0])
    last = step.clone()
    for passed in range(1, int(now - step.min()) + 1):
        if beta1**passed < FADED and not group["weight_decay"]:
            break
        step = last + passed
        missed = step <= now
        faded = first * beta1**passed, second * beta2**passed
        value = torch.where(missed, _moved(value, *faded, step, rates[(step.long() - 1).clamp(max=now)], group), value)
    behind = now - last
    table[rows] = value
    state["exp_avg"][at], state["exp_avg_sq"][at] = first * beta1**behind, second * beta2**behind
    state["step"][at] = float(now)


def _moved(value: Tensor, first: Tensor, second: Tensor, step: Tensor, rate: Tensor, group: dict[str, Any]) -> Tensor:
    """Rows [n, width] after step number `step` [n, 1] at `rate` (Loshchilov & Hutter 2019, algorithm 2)."""
    beta1, beta2 = group["betas"]
    spread = (second / (1 - beta2**step)).sqrt() + group["eps"]
    moved: Tensor = value * (1 - rate * group["weight_decay"]) - rate * (first / (1 - beta1**step)) / spread
    return moved


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of all `parameters` together to a norm of at most `max_norm`; returns the norm before.

    As torch.nn.utils.clip_grad_norm_, which does not accept sparse gradients.
    """
    values = []
    for parameter in parameters:
        if _is_sparse(parameter):
            parameter.grad = parameter.grad.coalesce()  # type: ignore[union-attr]
        if parameter.grad is not None:
            values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    kinds = [[v for v in values if isinstance(v, DTensor) == sharded] for sharded in (False, True)]
    norms = [_whole(torch.nn.utils.get_total_norm(some)) for some in kinds if some]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device) for one in norms]))
    for value in values:
        value.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0).item())
    return norm


def _sharded_as(parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's moments, in shards if the parameter is."""
    alike = {name for name, value in state.items() if value.shape == parameter.shape}
    return {name: as_shards_of(parameter, value) if name in alike else value for name, value in state.items()}


def _whole(value: Any) -> Any:
    """The whole of a value in shards; all workers must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _is_sparse(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse
