"""Users in two dimensions: the rows of a run's user model, by their principal components."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.dataset import GENERIC
from prlhf.errors import PrlhfError, one_line
from prlhf.model.user_models import first_indices
from prlhf.model.user_store import read_users
from prlhf.model.weights import USER_MODEL

MOST = 1000  # users in a picture: the first ones


class Plane(NamedTuple):
    """Users in two dimensions: their ids, points [N, 2], and the shares of the variance on the two axes."""

    table: str  # the name of the users' rows in the user model
    users: list[str]
    points: Tensor
    shares: list[float]


def planes(model: Path, config: TrainConfig) -> list[Plane]:
    """A plane for each table with a row per user in the folder `model`; none where there are fewer than three users.

    A table of what users add to the generic user has the generic user at 0. Raises PrlhfError if a file is damaged.
    """
    users = read_users(model)
    known = {user: index for user, index in users.index_of().items() if index <= MOST}
    if len(known) < 3:
        return []
    found = []
    path = model / USER_MODEL
    try:
        with safe_open(path, "pt") as file:
            for name, first in first_indices(config, users.count).items():
                table = file.get_slice(name)[: MOST + 1].float()
                if not table.shape[1]:  # users act elsewhere
                    continue
                ids, rows = list(known), table[[index - first for index in known.values()]]
                if name.endswith("weights.weight") and config.cluster_weights == "softmax":
                    table, rows = table.softmax(-1), rows.softmax(-1)
                if first == 0:
                    ids, rows = [GENERIC, *ids], torch.cat([table[:1], rows])
                elif name.endswith("offsets.weight"):
                    ids, rows = [GENERIC, *ids], torch.cat([torch.zeros_like(rows[:1]), rows])
                found.append(Plane(name, ids, *principal(rows)))
    except (OSError, SafetensorError, IndexError) as error:
        raise PrlhfError(f"{path} is damaged: {one_line(error)}", "use a copy, or train again") from error
    return found


def principal(rows: Tensor) -> tuple[Tensor, list[float]]:
    """The first two principal components [N, 2] of `rows` [N, d], and the share of the variance on each.

    The sign of a component is that with which its largest loading is positive, so equal rows give equal pictures.
    """
    centered = rows - rows.mean(0)
    left, sizes, right = torch.linalg.svd(centered, full_matrices=False)
    left, right = left[:, :2], right[:2]
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    points = left * sizes[:2] * signs
    total = sizes.square().sum().clamp(min=torch.finfo(sizes.dtype).tiny)
    shares = (sizes[:2].square() / total).tolist()
    missing = 2 - points.shape[1]
    return torch.nn.functional.pad(points, (0, missing)), [*shares, *[0.0] * missing]
