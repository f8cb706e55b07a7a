"""What trained users' rows say of a user who is not known yet: a Gaussian prior over rows.

A row w = center + L z, z ~ N(0, I): the center is the generic user's row, and L L' is what trained users' rows have as
second moment around it. So nobody's taste is the generic user, exactly, and a few choices move a user where trained
users are spread. Rows are short (gates, weights of clusters): then all directions are free, those that no trained user
takes by a hundredth of the mean variance. Or they are long (soft prompts): then the principal directions are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.model.weights import USER_MODEL, USER_PRIOR

SHORT = 64  # numbers of a row in which all directions are free
DIRECTIONS = 16  # of a longer row
FLOOR = 0.01  # of the mean variance: where trained users do not differ


@dataclass(frozen=True)
class UserPrior:
    """The generic user's row `center` [d], and `loadings` [d, c] of the deviations of users from it."""

    center: Tensor
    loadings: Tensor

    def scaled(self, by: float) -> UserPrior:
        """The same directions, with deviations `by` times as large."""
        return replace(self, loadings=self.loadings * by)

    def save(self, folder: Path) -> None:
        """Write it beside a user model."""
        save_file({"center": self.center.contiguous(), "loadings": self.loadings.contiguous()}, folder / USER_PRIOR)


def read_prior(folder: Path) -> UserPrior | None:
    """The prior of a checkpoint whose checksums were compared; None if it has none yet."""
    path = folder / USER_PRIOR
    return UserPrior(**load_file(path)) if path.is_file() else None


def prior_of(rows: Tensor, center: Tensor) -> UserPrior:
    """The prior from trained users' rows [m, d] around the generic user's [d]."""
    deviations = (rows - center).double()
    if len(center) <= SHORT:
        variances, directions = torch.linalg.eigh(deviations.T @ deviations / len(rows))
        variances = variances.clamp(min=0) + FLOOR * variances.mean()
    else:
        sizes, mixtures = torch.linalg.eigh(deviations @ deviations.T)
        variances = sizes[-DIRECTIONS:].clamp(min=0) / len(rows)
        directions = deviations.T @ mixtures[:, -DIRECTIONS:] / sizes[-DIRECTIONS:].clamp(min=1e-30).sqrt()
    loadings = (directions * variances.sqrt()).flip(1)  # the longest first
    return UserPrior(center.float(), loadings[:, variances.flip(0) > 1e-12 * variances.max()].float())


def stored_rows(folder: Path, first: Mapping[str, int], user_indices: Sequence[int]) -> Tensor:
    """Rows [n, d] over all tables of a checkpoint; that of the generic user, index 0, is 0 where he has none.

    A row of 0 is the generic user exactly, except for softmax weights of gates, where it is the mean of the clusters.
    `first`: the user index of each table's first row, in the order of the parts of a row.
    """
    with safe_open(folder / USER_MODEL, "pt") as file:
        parts = [_picked(file.get_slice(name), first[name], user_indices) for name in first]
    return torch.cat(parts, 1)


def _picked(table: Any, first: int, user_indices: Sequence[int]) -> Tensor:
    nothing = torch.zeros(1, table.get_shape()[1])
    rows = [table[at - first : at - first + 1] if at >= first else nothing for at in user_indices]
    return torch.cat([nothing[:0], *rows])
