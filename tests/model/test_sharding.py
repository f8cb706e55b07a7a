"""FSDP2 on real worker processes with gloo between them: a model in shards is the model, its training and what it
leaves on disk are one process's, whatever number of workers goes on from it.

Each number of workers is started once and does everything for that number; the tests look at the results.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from architectures import CONFIGS, PAD, TOKENS, WITHOUT_TREES
from safetensors.torch import load_file
from test_workers import assert_same, run_workers, shortened
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prlhf.config import GenerateConfig, TrainConfig
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.generate.run import generate
from prlhf.kernels import speed_up
from prlhf.model import workers
from prlhf.model.base import make_trainable
from prlhf.model.base_cache import base_key
from prlhf.model.checkpoint import load_policy
from prlhf.model.engine import Engine, made_up
from prlhf.model.personalized import PersonalizedLM, unwrapped
from prlhf.model.prefix_tree import pack
from prlhf.model.readings import padded
from prlhf.model.sharding import load_spread_base, shard
from prlhf.model.user_models import build_user_model
from prlhf.progress import SILENT
from prlhf.responses import read_responses
from prlhf.train.loop import Listener, Loop, Stop
from prlhf.train.run import learn, train

STEPS, KEPT = 20, 16  # of a run, and after which a checkpoint of it is put aside
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"user_model": "individual"},
    "dpo, all weights": {"user_model": "cluster", "full_finetune": True},
    "gates": {"user_model": "cluster", "user_in": "both"},
    "rm": {"objective": "rm", "user_model": "cluster"},
    "rm, all weights": {"objective": "rm", "user_model": "individual", "full_finetune": True},
}
SHORT: dict[str, dict[str, Any]] = {  # three steps of each, from the beginning to the end
    "checkpointing": {"gradient_checkpointing": True, "full_finetune": True},
    "accumulation": {"accumulation": 2, "user_model": "uniform"},
    "no cache": {"reference_cache": False, "group_by_prompt": True},
    "bf16": {"precision": "bf16"},
    "a gate per block": {"user_in": "adapter", "gates": "block", "gradient_checkpointing": True, "rate": "gate_lr"},
}


def config_of(make_config: Any, dataset: Path, options: dict[str, Any]) -> TrainConfig:
    """With few tokens a pass, so that workers have unlike numbers of parts, and gradients that are clipped."""
    common = {
        "max_steps": STEPS, "batch_size": 4, "lr": 1e-3, options.get("rate", "user_lr"): 1e-2, "eval_every": 10,
        "save_every": 8, "max_grad_norm": 0.5, "pack_tokens": 40, "dataset": str(dataset),
    }  # fmt: skip
    config: TrainConfig = make_config(
        Path("unused"), **common | {key: value for key, value in options.items() if key != "rate"}
    )
    return config


class Watch(Listener):
    """Puts the checkpoint of step KEPT aside, and writes down how the model lies on this worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begun(self, loop: Loop) -> None:
        pass

    def saved(self, loop: Loop, checkpoint: Path) -> None:
        if loop.step == KEPT and workers.rank() == 0:
            shutil.copytree(
                checkpoint, self.folder.with_name(f"{self.folder.name}-kept") / "checkpoints" / checkpoint.name
            )
        if not (self.folder / "layout.json").exists():
            (self.folder / "layout.json").write_text(json.dumps(layout(loop.model, loop.optimizer)))


def layout(model: Any, optimizer: Any) -> dict[str, Any]:
    """What this worker holds: of the language model, beside it, and of the optimizer."""
    lm = list(model.lm.parameters())
    moments = [state["exp_avg"] for p, state in optimizer.state.items() if any(p is other for other in lm)]
    return {
        "root": isinstance(model, FSDPModule),
        "layers": [isinstance(layer, FSDPModule) for layer in decoder_layers(model.lm)],
        "in shards": [isinstance(p, DTensor) for p in lm],
        "moments": [isinstance(moment, DTensor) for moment in moments],
        "beside": [isinstance(p, DTensor) for name, p in model.named_parameters() if not name.startswith("lm.")],
        "held": sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in lm),
        "in all": sum(p.numel() for p in lm),
    }


def decoder_layers(lm: Any) -> list[nn.Module]:
    return [module for module in lm.modules() if type(module).__name__.endswith("DecoderLayer")]


def run_here(config: TrainConfig, out: Path, sharded: bool, start: Path | None = None) -> None:
    """A run on these workers, each in a folder of its own; from the checkpoint in `start`, if there is one."""
    own = out.parent / f"{out.name}-{workers.rank()}"
    for left in (own, own.with_name(f"{own.name}-kept")):  # by workers that were aborted
        shutil.rmtree(left, ignore_errors=True)
    if start:
        shutil.copytree(start, own)
    learn(
        config.model_copy(update={"out": own}), read_prepared(Path(config.dataset)), start is not None, SILENT, None,
        Stop(), Watch(own), sharded,
    )  # fmt: skip


def on_two(rank: int, folder: Path, cases: dict[str, TrainConfig], short: dict[str, TrainConfig]) -> None:
    for name, config in cases.items():
        run_here(config, folder / name / "two", True)
        run_here(config, folder / name / "one-two", True, folder / name / "one-kept")
    run_here(cases["dpo"], folder / "dpo" / "ddp", False)
    for name, config in short.items():
        run_here(config, folder / name / "two", True)


def on_three(rank: int, folder: Path, cases: dict[str, TrainConfig]) -> None:
    for name, config in cases.items():
        run_here(config, folder / name / "two-three", True, folder / name / "two-0-kept")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_config: Any, prepared: Path) -> Path:
    """Folders CASE/one, CASE/two-0, ..., by how many workers ran it, and by how many from its checkpoint on."""
    folder = tmp_path_factory.mktemp("sharded")
    data = shortened(str(prepared), folder / "data")
    cases = {name: config_of(make_config, data, options) for name, options in CASES.items()}
    short = {name: config_of(make_config, data, {"max_steps": 3, **options}) for name, options in SHORT.items()}
    for name, config in (cases | short).items():
        out = folder / name / "one"
        learn(config.model_copy(update={"out": out}), read_prepared(data), False, SILENT, None, Stop(), Watch(out))
    run_workers(2, on_two, folder, cases, short)
    run_workers(3, on_three, folder, cases)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_worker_holds_a_part_of_every_layer(runs: Path, name: str) -> None:
    parts = [json.loads((runs / name / f"two-{rank}" / "layout.json").read_text()) for rank in (0, 1)]
    for part in parts:
        assert part["root"]
        assert part["layers"] == [True, True]
        assert all(part["in shards"])
        assert part["moments"]
        assert all(part["moments"])
        assert part["beside"]
        assert not any(part["beside"])
        assert part["held"] < 0.51 * part["in all"]
    assert sum(part["held"] for part in parts) == parts[0]["in all"]


def test_workers_of_ddp_hold_all_of_it(runs: Path) -> None:
    """What the test above looks at is not so anyway."""
    part = json.loads((runs / "dpo" / "ddp-1" / "layout.json").read_text())
    assert not any([part["root"], *part["layers"], *part["in shards"]])
    assert part["held"] == part["in all"]


@pytest.mark.parametrize("name", CASES)
def test_two_workers_with_shards_follow_one(runs: Path, name: str) -> None:
    """20 steps, the last of an epoch with one comparison for two workers."""
    assert_same(runs / name / "one", runs / name / "two-0")
    assert_same_weights(runs / name / "one", runs / name / "two-0")
    assert not (runs / name / "two-1" / "model").exists()


@pytest.mark.parametrize("name", SHORT)
def test_shards_with_other_settings(runs: Path, name: str) -> None:
    assert_same(runs / name / "one", runs / name / "two-0", within=1e-4 if name != "bf16" else 0.05)


@pytest.mark.parametrize("how", ["one-two", "two-three"])
@pytest.mark.parametrize("name", CASES)
def test_other_numbers_of_workers_continue(runs: Path, name: str, how: str) -> None:
    assert_same(runs / name / "one", runs / name / f"{how}-0")
    assert_same_weights(runs / name / "one", runs / name / f"{how}-0")


@pytest.mark.parametrize("name", CASES)
def test_one_process_continues_from_shards(runs: Path, name: str, tmp_path: Path, make_config: Any) -> None:
    config = config_of(make_config, runs / "data", CASES[name])
    shutil.copytree(runs / name / "two-0-kept", tmp_path / "run")
    shutil.copy(runs / name / "two-0" / "recipe.yaml", tmp_path / "run")
    train(config.model_copy(update={"out": tmp_path / "run"}), resume=True)
    assert_same(runs / name / "one", tmp_path / "run")
    assert_same_weights(runs / name / "one", tmp_path / "run")


def assert_same_weights(expected: Path, run: Path) -> None:
    names = {path.name for path in (expected / "model").glob("*.safetensors")}
    assert names == {path.name for path in (run / "model").glob("*.safetensors")}
    assert len(names) >= 2
    for name in names:
        weights, found = (load_file(folder / "model" / name) for folder in (expected, run))
        assert weights.keys() == found.keys()
        for key, value in weights.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4)


def test_what_shards_leave_writes_as_what_ddp_leaves(runs: Path, tmp_path: Path) -> None:
    def written(run: str) -> list[str]:
        options = {"max_new_tokens": 8, "max_prompts": 3, "device": "cpu", "temperature": 0.0}
        config = GenerateConfig.model_validate(options | {"out": tmp_path / f"{run}.jsonl"})
        generate(runs / "dpo" / run, config)
        return [row.response for row in read_responses(config.out)]

    assert written("two-0") == written("ddp-0")
    assert any(written("ddp-0"))


def test_a_base_in_shards_is_the_same_base(runs: Path) -> None:
    """Its fingerprint is read where it is whole, and goes with the model."""
    about = [json.loads((runs / "dpo" / run / "model/prlhf.json").read_text()) for run in ("one", "two-0")]
    assert about[0]["base_fingerprint"] == about[1]["base_fingerprint"]
    assert load_policy(runs / "dpo" / "two-0", device="cpu").user_ids == ["ann", "bob", "cat"]


# ---- models of all makes, put in shards ----


def every_architecture(rank: int) -> None:
    for name in [*CONFIGS, *WITHOUT_TREES]:
        for full in (False, True):
            try:
                proved(rank, name, full)
            except Exception as error:
                raise AssertionError(f"{name}, full={full}") from error


def proved(rank: int, name: str, full: bool) -> None:
    """Values, reference, gradients and the cache's key of a model in shards are those of the whole one."""
    options = {"full_finetune": True} if full else {"lora_dropout": 0.0, "lora_r": 2}
    config = TrainConfig.model_validate({"user_tokens": TOKENS, "user_init": "random", **options})
    whole = made(architectures.base_of(name).lm, config)
    if rank == 0:
        lm = architectures.base_of(name).lm
    else:
        with torch.device("meta"):
            lm = type(unwrapped(whole.lm))(unwrapped(whole.lm).config)
    parts = shard(trainable(lm, config), torch.device("cpu"), lambda lm: with_users(lm, config))
    key = base_key(parts.lm)
    assert key == base_key(whole.lm)
    engines = [Engine(model, PAD) for model in (whole, parts)]
    assert engines[0].trees == engines[1].trees == (name in CONFIGS)
    assert [engine.in_step for engine in engines] == [False, True]
    readings = made_up(whole)
    for engine in engines:
        engine.budget = 40
    torch.testing.assert_close(engines[1].reference(readings), engines[0].reference(readings), atol=1e-4, rtol=1e-4)
    rows = pack(readings, TOKENS) if engines[0].trees else padded(readings, TOKENS, PAD)
    values = [model(rows) for model in (whole, parts)]
    torch.testing.assert_close(values[1], values[0], atol=1e-4, rtol=1e-4)
    for value in values:
        value.sum().backward()
    expected = dict(whole.named_parameters())
    trained = {key: p for key, p in parts.named_parameters() if p.requires_grad and key.startswith("lm.")}
    assert trained
    assert all(isinstance(p, DTensor) for p in parts.lm.parameters())
    for key, parameter in trained.items():
        grad = expected[key].grad
        if grad is None:
            assert parameter.grad is None or not parameter.grad.full_tensor().any()
        else:
            torch.testing.assert_close(parameter.grad.full_tensor(), grad, atol=1e-4, rtol=1e-3)


def made(lm: Any, config: TrainConfig) -> PersonalizedLM:
    return with_users(trainable(lm, config), config)


def trainable(lm: Any, config: TrainConfig) -> Any:
    lm = make_trainable(lm, config)
    if next(lm.parameters()).device.type != "meta":
        architectures.perturb(lm, "lora_B")
    speed_up(lm, torch.device("cpu"))
    return lm


def with_users(lm: Any, config: TrainConfig) -> PersonalizedLM:
    return PersonalizedLM(lm, build_user_model(config, 3, lm.get_input_embeddings().weight))


def test_models_of_all_makes_are_themselves_in_shards() -> None:
    run_workers(2, every_architecture)


# ---- reading the base ----


def reading_fails(rank: int, folder: Path) -> None:
    """Of a base that only the first worker reads whole, and another whose config is damaged for the second alone."""
    for name in ("weights", "config"):
        with pytest.raises(PrlhfError, match=r"the weights of|cannot load model"):
            load_spread_base(str(folder / (name if name == "weights" else f"{name}-{rank}")), torch.float32, False)
    read = load_spread_base(str(folder / "whole"), torch.float32, False)
    assert {p.device.type for p in read.lm.parameters()} == {"cpu" if rank == 0 else "meta"}
    assert len(read.fingerprint) == 16


def test_a_base_that_one_worker_cannot_read_is_refused_by_all(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("weights", "config-0", "config-1", "whole"):
        shutil.copytree(tiny_base, tmp_path / name)
    (tmp_path / "weights/model.safetensors").write_bytes(b"no weights")
    (tmp_path / "config-1/config.json").write_text("{")
    run_workers(2, reading_fails, tmp_path)
