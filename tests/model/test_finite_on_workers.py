"""What is not finite for one worker ends the run on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_workers import run_workers
from torch import nn

from prlhf.errors import NotFinite
from prlhf.train import finite

MakeConfig = Callable[..., Any]
NAN = float("nan")


def one_worker_meets_it(rank: int, out: Path, config: Any) -> None:
    watch = finite.Watch()
    for loss, norm in ((1.0, 1.0), (NAN if rank else 1.0, 1.0), (1.0, math.inf if rank else 1.0)):
        watch.add_rows([f"row-{rank}", f"fine-{rank}"], torch.tensor([loss, 1.0]))
        try:
            watch.check(config, 3, torch.tensor(loss), torch.tensor(norm))
            said = "sound"
        except NotFinite as error:
            said = str(error)
        with (out / f"{rank}.txt").open("a") as file:
            file.write(said + "\n")
    weight = nn.Parameter(torch.tensor([NAN if rank else 1.0]))
    with pytest.raises(NotFinite, match="the weights"):
        finite.check_parameters(config, 3, [weight])


def test_workers_end_together(tmp_path: Path, make_config: MakeConfig) -> None:
    """Whoever meets it, all raise the same: none is left waiting for the others."""
    run_workers(2, one_worker_meets_it, tmp_path, make_config(tmp_path / "run"))
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second
    assert first[0] == "sound"
    assert "the loss of comparison row-1 is not finite at step 3" in first[1]
    assert "the gradient is not finite at step 3" in first[2]
