"""What a worker of FSDP holds, against one of DDP and against the estimate of `--dry-run`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import shards  # noqa: E402
from prlhf.config import ClusterConfig, TrainConfig  # noqa: E402
from prlhf.train.plan import GIB, plan  # noqa: E402

SHAPE = shards.WIDE | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark")
@pytest.mark.parametrize("full", [False, True])
def test_a_worker_with_shards_holds_about_half(tmp_path: Path, full: bool) -> None:
    """24 million parameters; after a step, weights and moments, and at most; the latter is near the estimate."""
    shards.write_base(tmp_path / "base", SHAPE)
    shards.write_data(tmp_path / "data")
    config = TrainConfig(
        dataset=str(tmp_path / "data"), model=str(tmp_path / "base"), full_finetune=full, device="cpu", batch_size=2,
        max_steps=3, eval_every=0, save_every=1000, reference_cache=False,
    )  # fmt: skip
    found = {}
    for parallel in ("ddp", "fsdp"):
        own = config.model_copy(update={"out": tmp_path / parallel})
        found[parallel] = shards.measured(own, parallel == "fsdp")
        cluster = ClusterConfig.model_validate({"workers": 2, "parallel": parallel})
        estimate = plan(config.model_copy(update={"out": tmp_path / "planned"}), cluster=cluster)
        peak = estimate["memory_gib"]["peak"] * GIB
        print(
            parallel,
            full,
            [[f"{value / shards.MIB:.0f}" for value in one] for one in found[parallel]],
            f"{peak / shards.MIB:.0f}",
        )
        assert 0.5 < peak / found[parallel][1][2] < 2
    for ddp, fsdp in zip(found["ddp"], found["fsdp"], strict=True):
        assert fsdp[1] < 0.65 * ddp[1]
