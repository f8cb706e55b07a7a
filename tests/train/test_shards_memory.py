"""What a worker of FSDP holds, against one of DDP and against the estimate of `--dry-run`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import shards  # noqa: E402
from prlhf.config import ClusterConfig, TrainConfig  # noqa: E402
from prlhf.train.dry_run import GIB, plan  # noqa: E402

SHAPE = shards.WIDE | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark")
@pytest.mark.parametrize("full", [False, True])
def test_a_worker_with_shards_holds_half_of_what_is_divided(tmp_path: Path, full: bool) -> None:
    """25 million parameters: half of the weights and moments is gone after a step, and the peak is as estimated."""
    shards.write_base(tmp_path / "base", SHAPE)
    shards.write_data(tmp_path / "data")
    config = TrainConfig(
        dataset=str(tmp_path / "data"), model=str(tmp_path / "base"), full_finetune=full, device="cpu", batch_size=2,
        max_steps=3, eval_every=0, save_every=1000, reference_cache=False,
    )  # fmt: skip
    found, planned = {}, {}
    for parallel in ("ddp", "fsdp"):
        own = config.model_copy(update={"out": tmp_path / parallel})
        found[parallel] = shards.measured(own, parallel == "fsdp")
        cluster = ClusterConfig.model_validate({"workers": 2, "parallel": parallel})
        planned[parallel] = plan(config.model_copy(update={"out": tmp_path / "planned"}), cluster=cluster)["memory_gib"]
        peak = planned[parallel]["peak"] * GIB
        print(parallel, full, found[parallel], peak)
        assert 0.5 < peak / found[parallel][1][2] < 2
    saved = sum(planned["ddp"][part] - planned["fsdp"][part] for part in ("weights", "optimizer")) * GIB
    for ddp, fsdp in zip(found["ddp"], found["fsdp"], strict=True):
        assert ddp[1] - fsdp[1] > 0.85 * saved  # what else a process holds is the same
