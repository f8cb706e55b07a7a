"""Workers of one run, as real processes with gloo between them: what they average, share and put together again."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.model import workers
from prlhf.train import metrics
from prlhf.train.loop import Stop


def one_of(rank: int, port: int, count: int, work: Any, *args: Any) -> None:
    """A worker process, with the environment that Ray's have too.

    It ends without taking its interpreter down, as Ray's workers are ended: a thread of gloo's that still lets go of a
    tensor while Python finalises aborts the process ("terminate called without an active exception").
    """
    faulthandler.enable()
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(count),
        LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count),
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    try:
        work(rank, *args)
    finally:
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_workers(count: int, work: Any, *args: Any) -> None:
    """Run `work(rank, *args)` on `count` workers; it begins again once if PyTorch takes a worker down.

    glibc was seen to end a worker in shards ("double free or corruption", torch 2.13 and gloo, a busy machine), once in
    many runs: no fault of a test, and none that Python has an exception for. Where it was is written to stderr.
    """
    try:
        start_workers(count, work, *args)
    except ProcessExitedException as error:
        if error.signal_name != signal.SIGABRT.name:
            raise
        warnings.warn(f"a worker of {work.__name__} was aborted, all begin again", stacklevel=2)
        start_workers(count, work, *args)


def start_workers(count: int, work: Any, *args: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of, (port, count, work, *args), nprocs=count)


def test_a_single_worker_has_everything() -> None:
    items = list(range(5))
    assert workers.own(items) == workers.spread(items) == workers.collect(items, 5) == items
    assert workers.gather("mine") == ["mine"]
    assert workers.most(3) == 3


def aborted(rank: int, folder: Path, times: int) -> None:
    """The second worker is aborted as many times as `times` says."""
    before = len(list(folder.iterdir()))
    torch.distributed.barrier()
    if rank == 1 and before < times:
        (folder / str(before)).touch()
        os.abort()


def test_workers_begin_again_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="aborted was aborted"):
        run_workers(2, aborted, tmp_path, 1)
    with pytest.raises(ProcessExitedException), pytest.warns(UserWarning, match="aborted was aborted"):
        run_workers(2, aborted, tmp_path, 3)


def together(rank: int) -> None:
    for length in (1, 3, 4):
        items = list(range(length))
        shares = workers.gather(workers.own(items))
        assert sorted(item for share in shares for item in share) == items
        mine = workers.spread(items)
        assert len({len(share) for share in workers.gather(mine)}) == 1
        assert workers.collect([10 * item for item in mine], length) == [10 * item for item in items]
    assert workers.most(rank) == 1
    dense, unused, nothing = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0))
    dense.grad = torch.full((2,), float(rank))
    table = nn.Embedding(6, 2, sparse=True)
    table(torch.tensor([[1, 4], [4, 5]][rank])).sum().backward()
    if rank == 0:
        unused.grad = torch.ones(2)
    workers.average_gradients([dense, unused, nothing, table.weight], {table.weight: [1, 2, 4, 5]})
    assert dense.grad.tolist() == unused.grad.tolist() == [0.5, 0.5]
    assert table.weight.grad.is_sparse
    assert table.weight.grad.indices().tolist() == [[1, 2, 4, 5]]
    assert table.weight.grad.to_dense()[:, 0].tolist() == [0, 0.5, 0, 0, 1, 0.5]


def test_two_workers_share_collect_and_average() -> None:
    run_workers(2, together)


def learn_in(rank: int, config: TrainConfig, folder: Path, resume: bool = False, sharded: bool = False) -> None:
    from prlhf.train.run import learn

    own = config.model_copy(update={"out": folder / str(rank)})
    learn(own, read_prepared(Path(config.dataset)), resume, _silent(), None, Stop(), None, sharded)


def _silent() -> Any:
    from prlhf.progress import SILENT

    return SILENT


@pytest.mark.parametrize(
    ("objective", "user_model", "user_in", "device"),
    [("dpo", "individual", "prompt", "cpu"), ("dpo", "cluster", "prompt", "auto"), ("dpo", "uniform", "prompt", "cpu"),
     ("dpo", "individual", "adapter", "cpu"), ("rm", "individual", "both", "auto")],
)  # fmt: skip
def test_two_workers_follow_one(
    make_config: Any, tmp_path: Path, objective: str, user_model: str, user_in: str, device: str
) -> None:
    """Half the batch each, 20 steps, the last of an epoch with one comparison for two workers. In no step does a
    worker have all users, and gradients are clipped."""
    from prlhf.train.run import train

    options = {
        "objective": objective, "user_model": user_model, "user_in": user_in, "max_steps": 20, "batch_size": 4,
        "lr": 1e-3, "gate_lr" if user_in == "adapter" else "user_lr": 1e-2, "eval_every": 10, "save_every": 50,
        "max_grad_norm": 0.5, "device": device, "sample_every": 10 if objective == "dpo" else 0,
        "stop_metric": "margin_mean",
    }  # fmt: skip
    data = shortened(make_config(tmp_path).dataset, tmp_path / "data")
    config = make_config(tmp_path / "one", **options, dataset=str(data))
    train(config)
    run_workers(2, learn_in, config, tmp_path)
    assert_same(tmp_path / "one", tmp_path / "0")
    assert not (tmp_path / "1/model").exists()
    one, first, second = (metrics.read(tmp_path / run / "samples.jsonl") for run in ("one", "0", "1"))
    assert [(row["step"], row["user_id"]) for row in one] == [(row["step"], row["user_id"]) for row in first]
    assert (bool(first), second) == (objective == "dpo", [])  # only the first worker writes


def assert_same(expected_run: Path, run: Path, within: float = 1e-4) -> None:
    one, two = (metrics.read(folder / "metrics.jsonl") for folder in (expected_run, run))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for expected, found in zip(one, two, strict=True):
        for name in ("loss", "accuracy", "margin", "grad_norm"):
            if name in expected:
                assert found[name] == pytest.approx(expected[name], abs=within), (found["step"], name)
    last, found_last = one[-1]["eval"], two[-1]["eval"]
    assert found_last["margin_by_user"] == pytest.approx(last["margin_by_user"], abs=10 * within)
    assert (run / "model").is_dir()


def shortened(source: str, folder: Path) -> Path:
    """The small data set with nine comparisons to train on: the third batch of four has but one."""
    from dataclasses import replace

    from prlhf.dataset import write_prepared

    data = read_prepared(Path(source))
    write_prepared(folder, replace(data, train=data.train[:9]))
    return folder
