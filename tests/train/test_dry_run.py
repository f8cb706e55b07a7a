"""A dry run says what the run will do, refuses what the run would refuse, and leaves no trace."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.dataset import Prepared, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.extensions import USER_MODELS
from prlhf.model.base import load_skeleton
from prlhf.model.checkpoint import build_policy, build_reward_model
from prlhf.model.user_models import UserModel, user_model
from prlhf.model.user_rows import SparseRows
from prlhf.results import TrainPlan
from prlhf.train import dry_run as planning
from prlhf.train.dry_run import idle_parameters, largest_batch, plan, share_of, user_parameters
from prlhf.train.memory import Batch, Shape, memory, shape_of
from prlhf.train.on_ray import train_on_ray
from prlhf.train.run import train
from prlhf_cli.main import app
from prlhf_cli.train import show_plan

MakeConfig = Callable[..., Any]
GIB = 2**30


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


# ---- what it says is what happens ----


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": None, "epochs": 1.5, "batch_size": 5, "accumulation": 2},
        {"max_steps": 3},
        {"objective": "rm", "max_steps": None, "batch_size": 4},
        {"objective": "sft", "max_steps": None, "batch_size": 5},
    ],
)
def test_steps_are_those_of_the_run(tmp_path: Path, make_config: MakeConfig, options: dict[str, Any]) -> None:
    config = make_config(tmp_path / "run", eval_limit=1, **options)
    planned = plan(config)
    done = train(config)
    assert planned["steps"] == done["steps"]
    assert planned["cut"] == done["cut"]
    assert (planned["train"], planned["eval"]) == (12, 1)


@pytest.mark.parametrize("user_model", ["uniform", "individual", "cluster"])
@pytest.mark.parametrize(
    "options", [{}, {"full_finetune": True}, {"objective": "rm"}, {"lora_targets": "q_proj,v_proj"}]
)
def test_parameters_are_those_of_the_model(
    tmp_path: Path, make_config: MakeConfig, user_model: str, options: dict[str, Any]
) -> None:
    config = make_config(tmp_path, user_model=user_model, **options)
    said = plan(config)["parameters"]
    build = build_reward_model if config.objective == "rm" else build_policy
    model = build(config, ["ann", "bob", "cat"], {}).model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert said["trained"] == trained
    assert said["user_model"] == sum(p.numel() for p in model.users.parameters())
    adapter = sum(p.numel() for name, p in model.lm.named_parameters() if "lora_" in name)
    assert said["adapter"] == adapter
    assert said["base"] == sum(p.numel() for p in model.lm.parameters()) - adapter


def test_a_million_users_are_counted_and_not_made(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path, user_tokens=10)
    assert user_parameters(config, 1_000_000, 4096) == 10 * 4096 * 1_000_001
    clusters = config.model_copy(update={"user_model": "cluster", "k": 5})
    assert user_parameters(clusters, 1_000_000, 4096) == 5 * 10 * 4096 + 5 * 1_000_001


def test_tokens_are_the_rows(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path)
    said = plan(config)
    data = read_prepared(Path(config.dataset))
    encoder = build_policy(config, data.user_ids, {}).encoder()
    encoded = [encoder.comparison(row) for row in data.train]
    tokens = [2 + len(e.text + e.prompt) + max(len(e.chosen), len(e.rejected)) for e in encoded]
    assert said["tokens_max"] == max(tokens)
    assert said["tokens_mean"] == pytest.approx(sum(tokens) / len(tokens))
    assert (said["train"], said["tokens_allowed"]) == (12, 128)


def test_the_longest_row_of_many_is_found(tmp_path: Path, make_config: MakeConfig) -> None:
    """And refused where it would be refused in training."""
    config = make_config(tmp_path / "run")
    data = read_prepared(Path(config.dataset))
    before = plan(config)
    long = replace(data.train[1], prompt=data.train[1].prompt[:-1] + " boats" * 15)
    write_prepared(tmp_path / "data", replace_train(data, long))
    config = config.model_copy(update={"dataset": str(tmp_path / "data")})
    assert plan(config)["tokens_max"] > before["tokens_max"] + 20
    write_prepared(tmp_path / "data", replace_train(data, replace(long, prompt=" boats" * 200)))
    with pytest.raises(PrlhfError, match=r"the prompt of 'train-1' has \d+ tokens"):
        plan(config)


def replace_train(data: Prepared, row: Any) -> Prepared:
    return Prepared([data.train[0], row, *data.train[2:]], data.eval, data.users, {"dataset": "small"})


def test_what_is_cut_is_counted(tmp_path: Path, make_config: MakeConfig) -> None:
    assert plan(make_config(tmp_path, max_prompt_tokens=20, max_tokens=40))["cut"]["prompts"] > 0


# ---- memory ----

SHAPE = Shape(
    layers=2, h=8, f=16, heads=2, vocabulary=100, a=4, parameters=1000, weight_bytes=4400, trained=100,
    trained_bytes=400, adapted=2 * (6 * 8 + 16), eager=False,
)  # fmt: skip
BATCH = Batch(tokens=40, scored=16, row=10)  # padded: four rows of 10 tokens, of which the response has 3


@pytest.mark.parametrize(
    ("options", "shape", "activations", "logits"),
    [
        # per token and layer 4 (64 + 64 + 10) = 552, and 8 bytes for each of 64 dropped inputs; three layers' worth
        ({"lora_dropout": 0.1}, {"on_cpu": False}, 40 * 3 * (552 + 512), 4 * 4 * 100 * 16),
        ({"lora_dropout": 0.0}, {"on_cpu": False}, 40 * 3 * 552, 4 * 4 * 100 * 16),
        # bf16: half of that, and an fp32 copy of each input
        ({"lora_dropout": 0.0}, {"a": 2, "on_cpu": False}, 40 * 3 * (276 + 256), 4 * 4 * 100 * 18),
        # on a CPU masks are in the format of the base; in bf16 no copies, and 8 h for attention in fp32
        ({"lora_dropout": 0.1}, {}, 40 * 3 * (552 + 512), 4 * 4 * 100 * 16),
        ({"lora_dropout": 0.0}, {}, 40 * 3 * 552, 4 * 4 * 100 * 16),
        ({"lora_dropout": 0.0}, {"a": 2}, 40 * 3 * (276 + 64), 4 * 4 * 100 * 18),
        ({"lora_dropout": 0.1}, {"a": 2}, 40 * 3 * (276 + 64 + 256), 4 * 4 * 100 * 18),
        ({"full_finetune": True}, {}, 40 * 3 * (552 + 96), 4 * 4 * 100 * 16),
        ({"gradient_checkpointing": True, "lora_dropout": 0.0}, {}, 40 * (2 * 32 + 552), 4 * 4 * 100 * 16),
        ({"lora_dropout": 0.0}, {"eager": True}, 40 * 3 * (552 + 120), 4 * 4 * 100 * 16),
        ({"objective": "rm", "lora_dropout": 0.0}, {}, 40 * 3 * 552, 0),
        ({"objective": "sft", "lora_dropout": 0.0}, {}, 40 * 3 * 552, 4 * 4 * 100 * 16),
    ],
)
def test_the_formula_by_hand(options: dict[str, Any], shape: dict[str, Any], activations: int, logits: int) -> None:
    parts = memory(TrainConfig(**options), replace(SHAPE, **shape), 25, BATCH)
    assert parts["weights"] == 4400 + 100
    assert parts["gradients"] == 400 + 100
    assert parts["optimizer"] == 2 * (400 + 100)
    assert parts["activations"] == activations
    assert parts["logits"] == logits
    assert parts["peak"] == 4500 + 500 + 1000 + activations + logits


@pytest.mark.parametrize(
    ("options", "idle"),
    [
        # 2 x 3 users met in a step, 6 x 10 in ten; rows of T_u d = 4 x 8 numbers, or of K = 5
        ({"user_model": "individual"}, (94 * 32, 40 * 32)),
        ({"user_model": "cluster", "k": 5}, (94 * 5, 40 * 5)),
        ({"user_model": "individual", "batch_size": 20}, (40 * 32, 0)),
        ({"user_model": "uniform"}, (0, 0)),
    ],
)
def test_only_users_who_are_met_have_gradients_and_moments(options: dict[str, Any], idle: tuple[int, int]) -> None:
    config = TrainConfig.model_validate({"batch_size": 2, "accumulation": 3, "user_tokens": 4} | options)
    assert idle_parameters(config, users=100, width=8, steps=10) == idle
    others = user_parameters(config, 100, 8)
    parts, all_met = (memory(config, SHAPE, others, BATCH, found) for found in (idle, (0, 0)))
    assert parts["weights"] == all_met["weights"] == 4400 + 4 * others
    assert parts["gradients"] == 400 + 4 * (others - idle[0])
    assert parts["optimizer"] == 2 * (400 + 4 * (others - idle[1]))
    assert all_met["peak"] - parts["peak"] == 4 * idle[0] + 8 * idle[1]


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 8), ({"alpha": 1.0}, 4), ({"user_model": "uniform"}, 4), ({"objective": "rm"}, 8)],
)
def test_the_largest_padded_batch(options: dict[str, Any], rows: int) -> None:
    """Prompts and responses are padded apart; the last batch of three rows is a short one."""
    config = TrainConfig(batch_size=2, prefix_tree=False, **options)
    assert largest_batch(config, [(5, 1), (2, 7)], 1000, 100) == Batch(rows * 12, rows * 8, 12)
    assert largest_batch(config, [(5, 1)] * 3, 1000, 100) == Batch(rows * 6, rows * 2, 6)
    assert largest_batch(config, [(5, 1)] * 3, 13, 100) == Batch(2 * 6, 2 * 2, 6)


@pytest.mark.parametrize(
    ("options", "readers"),
    [({}, 2), ({"alpha": 1.0}, 1), ({"user_model": "uniform"}, 1), ({"objective": "rm"}, 2)],
)
def test_the_largest_batch_of_trees(options: dict[str, Any], readers: int) -> None:
    """A prompt and both responses for each reader, in parts; one family may be more than the budget."""
    config = TrainConfig(batch_size=2, **options)
    assert largest_batch(config, [(5, 1), (2, 7)], 1000, 100) == Batch(readers * 23, readers * 16)
    assert largest_batch(config, [(5, 1), (2, 7)], 20, 100) == Batch(20, min(readers * 16, 20))
    assert largest_batch(config, [(5, 1), (2, 7)], 3, 2**21) == Batch(16, 4)


def test_the_largest_batch_of_demonstrations() -> None:
    """One reader and one response each, as trees and padded; one demonstration may be more than the budget."""
    config = TrainConfig(batch_size=2, objective="sft", user_model="uniform")
    assert largest_batch(config, [(5, 1), (2, 7)], 1000, 100) == Batch(15, 8)
    assert largest_batch(config, [(5, 1), (2, 7)], 1, 100) == Batch(9, 8)
    padded = config.model_copy(update={"prefix_tree": False})
    assert largest_batch(padded, [(5, 1), (2, 7)], 1000, 100) == Batch(24, 16, 12)


def measured_peak(config: TrainConfig, tmp_path: Path) -> float:
    """Bytes by which a process of its own grows while it trains; a short run beforehand imports what is lazy."""
    script = """
import json, sys
from prlhf.config import ClusterConfig, TrainConfig
from prlhf.train.run import train
warm_up, run = (TrainConfig.model_validate(c) for c in json.loads(sys.argv[1]))
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))
train(warm_up)
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
before = memory("VmRSS")
train(run)
print(memory("VmHWM") - before)
"""
    warm_up = config.model_copy(update={"out": tmp_path / "warm", "model": "tiny", "max_steps": 1, "batch_size": 1})
    configs = json.dumps([c.model_dump(mode="json") for c in (warm_up, config)])
    # every tensor is given back when it is freed, so that the number does not depend on the allocator's mood
    done = subprocess.run(
        ["env", "MALLOC_MMAP_THRESHOLD_=65536", sys.executable, "-c", script, configs],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark")
@pytest.mark.parametrize(
    "options",
    [
        {"lora_dropout": 0.05},
        {"lora_dropout": 0.0, "user_model": "uniform"},
        {"full_finetune": True, "lr": 1e-5},
        {"gradient_checkpointing": True},
        {"objective": "sft"},
        {"objective": "rm"},
        {"precision": "bf16"},
    ],
)
def test_the_estimate_is_within_a_factor_of_two(
    tmp_path: Path, make_config: MakeConfig, tiny_base: Path, options: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4, vocab_size=4096,
        max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "base")
    data = read_prepared(Path(make_config(tmp_path).dataset))
    rows = [replace(row, prompt=" boats" * 40 + row.prompt, chosen=row.chosen * 4) for row in data.train]
    write_prepared(tmp_path / "data", Prepared(rows, [], data.users, {"dataset": "small"}))
    config = make_config(
        tmp_path / "run", dataset=str(tmp_path / "data"), model=str(tmp_path / "base"), max_steps=2, batch_size=6,
        **options,
    )  # fmt: skip
    estimate = plan(config)["memory_gib"]["peak"] * GIB
    measured = measured_peak(config, tmp_path)
    print(f"{options}: estimate {estimate / GIB:.3f} GiB, measured {measured / GIB:.3f}, {estimate / measured:.2f}")
    assert 0.5 < estimate / measured < 2


# ---- workers ----

SHARDED = replace(SHAPE, layer=(1000, 40), root=(2400, 20))  # bytes in all, and of what is trained


def by_part(options: dict[str, Any], batch: Batch = BATCH, shape: Shape = SHARDED) -> dict[str, float]:
    return memory(TrainConfig(lora_dropout=0.0), shape, 25, batch, cluster=ClusterConfig.model_validate(options))


def test_every_worker_of_ddp_has_all_but_the_batch() -> None:
    alone, ddp = by_part({"workers": 1}), by_part({"workers": 4})
    assert "exchange" not in alone
    assert alone == memory(TrainConfig(lora_dropout=0.0), SHARDED, 25, BATCH)
    assert ddp["exchange"] == 400  # its buckets: the adapter's gradients once more, users' rows not
    assert {part: size for part, size in ddp.items() if part not in ("exchange", "peak")} == {
        part: size for part, size in alone.items() if part != "peak"
    }
    assert ddp["peak"] == alone["peak"] + 400


def test_workers_of_fsdp_share_base_and_adapter_and_not_the_users() -> None:
    """4400 bytes of base and adapter, 400 of them trained, and 25 numbers beside them, among four."""
    parts = by_part({"workers": 4, "parallel": "fsdp"})
    assert parts["weights"] == 1100 + 100
    assert parts["gradients"] == 100 + 100
    assert parts["optimizer"] == 2 * (100 + 100)
    assert parts["exchange"] == (2400 + 20) + 2 * 1000 + 40
    assert parts["activations"] == by_part({})["activations"]
    assert parts["peak"] == 1200 + 200 + 400 + 4460 + parts["activations"] + parts["logits"]
    assert by_part({"workers": 1, "parallel": "fsdp"}) == by_part({})  # one worker has nobody to share with


@pytest.mark.parametrize(("workers", "share"), [(0, 10), (1, 10), (2, 5), (3, 4), (16, 1)])
def test_a_batch_is_all_workers(workers: int, share: int) -> None:
    assert share_of(TrainConfig(batch_size=10), ClusterConfig(workers=workers)).batch_size == share


@pytest.mark.parametrize("objective", ["dpo", "rm"])
def test_workers_change_nothing_that_is_learned(tmp_path: Path, make_config: MakeConfig, objective: str) -> None:
    config = make_config(tmp_path / "run", objective=objective, batch_size=4, max_steps=None)
    alone, both = plan(config), plan(config, cluster=ClusterConfig(workers=2))
    for key in ("steps", "rows_per_step", "parameters", "tokens_mean", "settings"):
        assert alone[key] == both[key]
    assert (alone["workers"], both["workers"], both["parallel"]) == (0, 2, "ddp")
    assert both["memory_gib"]["activations"] < alone["memory_gib"]["activations"]


@pytest.mark.parametrize(
    ("options", "workers", "message"),
    [
        ({"batch_size": 2}, 3, "batch_size = 2 is less than workers = 3"),
        ({"objective": "sft", "batch_size": 1}, 2, "batch_size = 1 is less than workers = 2"),
    ],
)
def test_it_refuses_workers_as_training_does(
    tmp_path: Path, make_config: MakeConfig, options: dict[str, Any], workers: int, message: str
) -> None:
    """And suggests none that it would refuse."""
    config = make_config(tmp_path / "run", **options)
    for work in (plan, train_on_ray):
        with pytest.raises(PrlhfError, match=message):
            work(config, cluster=ClusterConfig(workers=workers))
    flags = plan(config, cluster=ClusterConfig(workers=workers - 1))["peak_gib_with"]
    assert [flag for flag in flags if "workers" in flag or (workers > 2 and "batch-size" in flag)] == []


def test_layers_and_root_are_the_whole(tiny_base: Path) -> None:
    """What FSDP gathers at a time is read off the model: two layers and the rest are all of it."""
    base, _ = load_skeleton(str(tiny_base), torch.float32)
    lm = planning.make_trainable(base.lm, TrainConfig(lora_r=2))
    shape = shape_of(base, lm, torch.device("cpu"))
    assert shape.layers == 2
    assert shape.weight_bytes == 2 * shape.layer[0] + shape.root[0]
    assert shape.trained_bytes == 2 * shape.layer[1] > 0
    assert shape.root == (sum(p.numel() for name, p in lm.named_parameters() if ".layers." not in name) * 4, 0)


def test_what_each_flag_changes_is_what_it_is_with_that_flag(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", batch_size=8)
    cluster = ClusterConfig(workers=2)
    said = plan(config, cluster=cluster)["peak_gib_with"]

    def peak(cluster: ClusterConfig = cluster, **changes: Any) -> float:
        return float(plan(config.model_copy(update=changes), cluster=cluster)["memory_gib"]["peak"])

    assert said.pop("--set gradient_checkpointing=true") == peak(gradient_checkpointing=True)
    assert said.pop("--set pack_tokens=512") == peak(pack_tokens=512)
    assert said.pop("--batch-size 4 --accumulation 2") == peak(batch_size=4, accumulation=2)
    assert said.pop("--parallel fsdp") == peak(cluster.model_copy(update={"parallel": "fsdp"}))
    assert said.pop("--workers 4") == peak(cluster.model_copy(update={"workers": 4}))
    assert said == {}
    assert "--set pack_tokens=8192" not in plan(config.model_copy(update={"pack_tokens": 16384}))["peak_gib_with"]


# ---- models that are not there whole ----


def test_a_large_model_without_its_weights(tmp_path: Path, make_config: MakeConfig, tiny_base: Path) -> None:
    """7 billion parameters, of which the folder holds the config and a tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig

    LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "llama")
    before = snapshot(tmp_path)
    said = plan(make_config(tmp_path / "run", model=str(tmp_path / "llama"), precision="bf16", lora_r=8))
    assert said["parameters"]["base"] == 6_738_415_616
    assert said["parameters"]["adapter"] == 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert said["memory_gib"]["weights"] == pytest.approx(13.48e9 / GIB, rel=0.01)
    assert any("holds no weights" in line for line in said["missing"])
    assert snapshot(tmp_path) == before


def test_a_skeleton_is_the_model_without_numbers(tiny_base: Path) -> None:
    base, missing = load_skeleton(str(tiny_base), torch.float32)
    assert missing == []
    assert {p.device.type for p in base.lm.parameters()} == {"meta"}
    assert base.context == 128


def test_a_hub_model_that_cannot_be_reached(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match="model no/such-model is not in the cache, and HF_HUB_OFFLINE forbids the hub"):
        plan(make_config(tmp_path / "run", model="no/such-model"))


def test_a_gguf_file_is_read_and_not_converted(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PrlhfError, match="no GGUF file at"):
        plan(make_config(tmp_path / "run", model=str(tmp_path / "no.gguf")))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF?")
    with pytest.raises(PrlhfError, match=r"cannot read .*bad.gguf as GGUF"):
        plan(make_config(tmp_path / "run", model=str(tmp_path / "bad.gguf")))
    assert not (tmp_path / "cache").exists()


# ---- what training would refuse ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/no/such/folder"}, "no model at /no/such/folder"),
        ({"dataset": "/no/such/data"}, "is not a prepared data set"),
        ({"lora_targets": "no_such_layer"}, "lora_targets = 'no_such_layer': 'no_such_layer' fits no layer"),
        ({"device": "abacus"}, "device 'abacus' is not known"),
        ({"max_tokens": 8}, "the prompt of"),
    ],
)
def test_it_refuses_what_training_refuses(
    tmp_path: Path, make_config: MakeConfig, options: dict[str, Any], message: str
) -> None:
    for work in (plan, train):
        with pytest.raises(PrlhfError, match=message):
            work(make_config(tmp_path / "run", **options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_elsewhere_can_be_planned_for_and_not_trained_on(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", device="cuda:0", precision="auto")
    said = plan(config)
    assert (said["device"], said["precision"], said["available_gib"]) == ("cuda", "bf16", None)
    assert any("this machine has no GPU" in line for line in said["missing"])
    assert plan(config.model_copy(update={"precision": "fp32"}))["precision"] == "fp32"
    with pytest.raises(PrlhfError, match="has no GPU"):
        train(config)
    here, there = config.model_copy(update={"device": "auto"}), ClusterConfig(workers=2, gpus_per_worker=1)
    assert plan(here)["device"] == "cpu"
    assert plan(here, cluster=there)["device"] == "cuda"  # workers that have a GPU each are on it


def test_a_folder_that_holds_a_run(trained: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match="already holds a run"):
        plan(make_config(trained))


# ---- the command ----


def test_data_is_prepared_for_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("prep: {comparisons: 2}\ntrain: {dataset: demo}\n")
    done = CliRunner().invoke(app, ["train", "--dry-run", "--recipe", "r.yaml", "--json"])
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["run"], said["settings"]["dataset"], said["train"]) == ("runs/demo-individual", "demo", 20)
    assert said["missing"] == ["the data set demo is not prepared yet: training will do that first"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("objective", ["dpo", "sft"])
def test_it_is_shown(prepared: Path, tiny_base: Path, tmp_path: Path, objective: str) -> None:
    line = ["train", "--dry-run", "--dataset", str(prepared), "--model", str(tiny_base), "--objective", objective]
    done = CliRunner().invoke(app, [*line, "--max-steps", "1234", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.stderr
    for text in ("1,234", "memory: peak", "parameters: adapter", "nothing was trained or written"):
        assert text in done.stdout
    assert "peak with --set gradient_checkpointing=true" in done.stdout
    assert ("demonstrations" in done.stdout) == (objective == "sft")
    assert not (tmp_path / "run").exists()


def test_a_workers_plan_is_shown(tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path / "run", device="cuda", batch_size=4)
    show_plan(TrainPlan.model_validate(plan(config, cluster=ClusterConfig(workers=2, parallel="fsdp"))))
    shown = capsys.readouterr().out
    for text in ("2, fsdp", "memory of a worker: exchange", "peak with --parallel ddp", "peak with --workers 4"):
        assert text in shown
    if not torch.cuda.is_available():
        assert re.search(r"memory of cuda.*unknown", shown)


@pytest.mark.parametrize("option", ["--resume", "--per-user"])
def test_only_one_new_run_is_planned(option: str, trained: Path) -> None:
    done = CliRunner().invoke(app, ["train", "--dry-run", option, "--out", str(trained)])
    assert done.exit_code == 2
    assert "leave out --resume, --per-user and --push-to-hub" in done.stderr


def test_a_user_model_of_ones_own(tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered as CONTRIBUTING says, it can be planned: its class is all that has to be known."""

    monkeypatch.setattr(USER_MODELS, "_found", dict(USER_MODELS._found))

    @user_model("scaled")
    class Scaled(UserModel):
        def __init__(self, _config: Any, users: int, place: Any) -> None:
            super().__init__(place)
            self.generic = torch.nn.Parameter(place.start(self.vectors))
            self.scales = SparseRows(torch.ones(users, 3), first=1)

    config = make_config(tmp_path / "run", user_model="scaled")
    assert plan(config)["parameters"]["user_model"] == 2 * 32 + 3 * 3
    assert idle_parameters(config, users=100, width=8, steps=10) == (3 * 98, 3 * 80)
