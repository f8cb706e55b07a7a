"""A quantized base: rounded weights and nothing else. Values, gradients and runs are those of a base so rounded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CONFIGS
from killed import Killed, StopAt
from material import write_base
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import prlhf
from prlhf.config import ClusterConfig, TrainConfig
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.model import quantized
from prlhf.model.base import load_base, load_skeleton, make_trainable
from prlhf.model.base_cache import base_key
from prlhf.model.checkpoint import Policy, assemble, load_policy
from prlhf.model.prefix_tree import pack
from prlhf.model.readings import Reading, padded
from prlhf.train import metrics
from prlhf.train.dry_run import plan
from prlhf.train.memory import shape_of
from prlhf.train.on_ray import check_share
from prlhf.train.run import train
from prlhf_cli.main import app

pytest.importorskip("bitsandbytes")

MakeConfig = Callable[..., Any]
KINDS = ("nf4", "int8")
READINGS = [
    Reading(user, before, response)
    for user in (1, 0, 3)
    for before in ((5, 6, 7, 8, 9), (5, 6, 7, 30))
    for response in ((20, 21, 1), (20, 22, 23, 1))
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as a block of nf4."""
    return write_base(tmp_path_factory.mktemp("wide") / "base", 64)


@pytest.fixture(scope="module")
def make(make_config: MakeConfig, base: Path) -> MakeConfig:
    return lambda out, **options: make_config(out, **({"model": str(base)} | options))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moved(base: Path, config: TrainConfig, **how: Any) -> Policy:
    """A policy whose adapter and users have left their start, the same for the same config."""
    policy = assemble(load_base(str(base), **how), config, ["ann", "bob", "cat"], {})
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    policy.model.eval()
    return policy


def linear(lm: Any) -> dict[str, Any]:
    """The linear layers of a base, with or without an adapter, which does not count."""
    layers = {name: m for name, m in lm.named_modules() if isinstance(m, nn.Linear)}
    return {name: m for name, m in layers.items() if not name.endswith("lm_head") and "lora_" not in name}


# ---- the base ----


def test_weights_are_rounded_and_the_rest_is_as_it_was(base: Path, kind: str) -> None:
    plain = load_base(str(base)).lm
    lm, whole = (load_base(str(base), quantize=kind, whole=whole).lm for whole in (False, True))
    weights, rounded = linear(plain), linear(whole)
    assert weights.keys() == linear(lm).keys() == rounded.keys()
    for name, layer in weights.items():
        step = layer.weight.abs().amax(1) / 127 / 2 if kind == "int8" else layer.weight.abs().max() * 0.16
        error = (rounded[name].weight - layer.weight).abs()
        assert (error <= step.reshape(-1, 1) * 1.01 + layer.weight.abs() / 2**11).all()  # int8: of weights in fp16
        assert error.max() > 0
        assert linear(lm)[name].weight.numel() * linear(lm)[name].weight.element_size() < layer.weight.numel() * 2
    others = {name: p for name, p in plain.named_parameters() if name.removesuffix(".weight") not in weights}
    for one in (lm, whole):
        assert all(torch.equal(one.get_parameter(name), value) for name, value in others.items())
        assert (one.dtype, one.training) == (torch.float32, False)
        assert not any(p.requires_grad for p in one.parameters())
    assert {type(m) for m in rounded.values()} == {nn.Linear}


def test_its_values_are_those_of_the_rounded_weights(base: Path, kind: str) -> None:
    """In training and evaluation, alone and in a batch."""
    ids = torch.arange(5, 45).view(2, 20)
    lm, whole = (load_base(str(base), quantize=kind, whole=whole).lm for whole in (False, True))
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        torch.testing.assert_close(lm(input_ids=ids).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(lm(input_ids=ids[:1]).logits, expected[:1], rtol=0, atol=1e-4)
        assert torch.equal(lm.train()(input_ids=ids).logits, lm.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_fingerprint_is_that_of_the_base_as_stored(name: str, base: Path, kind: str, tmp_path: Path) -> None:
    """Of GPT-2's layers too, whose weights are stored the other way round; a whole base keeps its kinds of layers."""
    import transformers

    torch.manual_seed(0)
    config, options = CONFIGS[name]
    wide = {key: 64 if value in (16, 32) else value for key, value in options.items()}
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**wide))
    made.save_pretrained(tmp_path)
    load_base(str(base)).tokenizer.save_pretrained(tmp_path)
    plain, lm, whole = (
        load_base(str(tmp_path), quantize=how, whole=whole)
        for how, whole in (("none", False), (kind, False), (kind, True))
    )
    assert plain.fingerprint == lm.fingerprint == whole.fingerprint
    low = load_base(str(tmp_path), dtype=torch.bfloat16, quantize=kind)
    assert (low.fingerprint, low.lm.dtype) == (plain.fingerprint, torch.bfloat16)
    state, stored = whole.lm.state_dict(), plain.lm.state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in stored.items()}
    assert any(not torch.equal(state[key], stored[key]) for key in state)
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm.lm(ids).logits, whole.lm(ids).logits, rtol=0, atol=1e-4)
    weights = load_file(tmp_path / "model.safetensors")
    key = next(key for key in weights if "attn" in key and key.endswith("weight"))
    weights[key][0, 0] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_base(str(tmp_path), quantize=kind).fingerprint != plain.fingerprint


def test_a_scale_makes_another_base(base: Path, kind: str) -> None:
    """Cached log-probs are found by the base's key: codes alone do not tell bases apart."""
    lm = load_base(str(base), quantize=kind).lm
    keys = {base_key(lm), base_key(load_base(str(base)).lm)}
    assert base_key(load_base(str(base), quantize=kind).lm) == base_key(lm)
    for name, value in quantized.scales(lm):
        if name.endswith(("q_proj.weight.scales", "q_proj.weight.nested_absmax")):
            value.mul_(2)
            keys.add(base_key(lm))
            value.div_(2)
    assert len(keys) == 4  # of two layers, the same without them, and without quantization


# ---- policies ----


@pytest.mark.parametrize("user_in", ["prompt", "adapter", "both"])
def test_a_policy_is_one_on_the_rounded_base(
    user_in: str, base: Path, make: MakeConfig, kind: str, tmp_path: Path
) -> None:
    """Log-probs, those of the reference, and gradients; only adapter and users are trained."""
    config = make(tmp_path, user_in=user_in, quantize=kind, lora_r=4)
    found, expected = (moved(base, config, quantize=kind, whole=whole) for whole in (False, True))
    names = {name for name, p in found.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("users.") for name in names)
    tokens = found.model.users.tokens
    values = []
    for policy in (found, expected):
        policy.model(padded(READINGS, tokens, 0)).sum().backward()
        with torch.no_grad():
            rows, trees = padded(READINGS, tokens, 0), pack(READINGS, tokens, 1)
            alone = torch.cat([policy.model(padded([one], tokens, 0)) for one in READINGS])
            reference = policy.model.reference(padded(READINGS, 0, 0))
            values.append((policy.model(rows), policy.model(trees), alone, reference))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
        assert ours.isfinite().all()
    torch.testing.assert_close(values[0][0], values[0][2], rtol=0, atol=1e-3)
    torch.testing.assert_close(values[0][0], values[0][1], rtol=0, atol=1e-3)
    other = dict(expected.model.named_parameters())
    for name, parameter in found.model.named_parameters():
        if parameter.grad is not None:
            gradient, theirs = parameter.grad.to_dense(), other[name.replace(".base_layer.", ".")].grad
            assert theirs is not None
            torch.testing.assert_close(gradient, theirs.to_dense(), rtol=1e-3, atol=1e-3)


def test_at_the_start_a_policy_is_its_reference(base: Path, make: MakeConfig, kind: str, tmp_path: Path) -> None:
    """While it is trained, too: no rounding in one of them only."""
    config = make(tmp_path, user_model="uniform", user_tokens=0, quantize=kind)
    model = assemble(load_base(str(base), quantize=kind), config, [], {}).model.train()
    rows = padded([one._replace(user_index=0) for one in READINGS], 0, 0)
    torch.testing.assert_close(model(rows), model.reference(rows), rtol=0, atol=1e-5)


# ---- runs ----

RUN: dict[str, Any] = {"user_in": "both", "max_steps": 4, "save_every": 2, "lora_dropout": 0.2, "user_text": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make: MakeConfig, kind: str) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "run"
    train(make(folder, quantize=kind, **RUN))
    return folder


def log_probs(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.model(padded(READINGS, policy.model.users.tokens, 0))  # type: ignore[no-any-return]


def test_resumed_is_uninterrupted(run: Path, make: MakeConfig, kind: str, tmp_path: Path) -> None:
    config = make(tmp_path / "run", quantize=kind, **RUN)
    with pytest.raises(Killed):
        train(config, progress=StopAt(3))
    train(config, resume=True)
    ours, theirs = (folder / "metrics.jsonl" for folder in (config.folder, run))
    assert [r.get("loss") for r in metrics.read(ours)] == [r.get("loss") for r in metrics.read(theirs)]
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (config.folder / "model" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_a_run_is_loaded_as_it_was_trained(run: Path, base: Path, kind: str) -> None:
    policy, whole = load_policy(run, "cpu", "fp32"), load_policy(run, "cpu", "fp32", whole=True)
    about = json.loads((run / "model" / "prlhf.json").read_text())
    assert about["base_fingerprint"] == load_base(str(base)).fingerprint
    assert all(quantized.is_quantized(layer.weight) for layer in linear(policy.base.lm).values())
    torch.testing.assert_close(log_probs(policy), log_probs(whole), rtol=0, atol=1e-3)
    rows = read_prepared(Path(policy.config.dataset)).eval
    assert prlhf.load(run, device="cpu").generate(rows[0].prompt, "ann", max_new_tokens=4) is not None


def test_another_base_is_refused(run: Path, base: Path, tmp_path: Path) -> None:
    """It differs in a weight that is quantized."""
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"][0, 0] += 1
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    with pytest.raises(PrlhfError, match="was trained on another base"):
        load_policy(run, "cpu", "fp32", base=str(tmp_path / "base"))


def test_commands_read_the_run(run: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(
        app, ["judge", "--checkpoint", str(run), "--device", "cpu", "--out", str(tmp_path / "judged"), "--json"]
    )
    assert said.exit_code == 0, said.output
    done = prlhf.export(run, ["ann"], tmp_path / "users", format="hf-users", precision="fp32")
    assert done.compared is not None
    assert done.compared.difference < 1e-3
    assert "rounded" in (tmp_path / "users/README.md").read_text()
    assert not json.loads((tmp_path / "users/config.json").read_text()).get("quantization_config")


@pytest.mark.parametrize("format", ["peft", "hf"])
def test_people_in_the_adapter_are_exported(
    format: str, make: MakeConfig, kind: str, tmp_path: Path, base: Path
) -> None:
    """What PEFT or transformers computes on the base, quantized as it was, is what the run computes."""
    from peft import PeftModel

    run = tmp_path / "run"
    train(make(run, quantize=kind, **(RUN | {"user_in": "adapter", "max_steps": 3})))
    done = prlhf.export(run, "ann", tmp_path / "ann", format=format, precision="fp32")
    assert done.compared is not None
    assert done.compared.difference < (0.1 if format == "peft" else 1e-3)  # adapters: on the base in bf16
    ids = torch.tensor([[5, 6, 7, 8, 9, 20, 21, 22]])
    if format == "peft":
        lm = PeftModel.from_pretrained(load_base(str(base), quantize=kind).lm, str(tmp_path / "ann")).eval()
        assert kind in (tmp_path / "ann/README.md").read_text()
    else:
        lm = load_base(str(tmp_path / "ann")).lm
    policy = load_policy(run, "cpu", "fp32")
    with torch.no_grad():
        found = lm(input_ids=ids).logits[0, 4:7].log_softmax(-1).gather(1, ids[0, 5:, None]).sum()
        expected = policy.model(padded([Reading(1, (5, 6, 7, 8, 9), (20, 21, 22))], 0, 0))
    assert float(found) == pytest.approx(float(expected), abs=1e-3)


def test_supervised_fine_tuning_leaves_a_whole_base(make: MakeConfig, kind: str, tmp_path: Path) -> None:
    """The rounded base with the adapter merged, which says what the trained model said."""
    config = make(tmp_path / "run", objective="sft", quantize=kind, max_steps=3)
    done = train(config)
    again = load_base(str(tmp_path / "run/model"))
    assert {type(m) for m in linear(again.lm).values()} == {nn.Linear}
    assert getattr(again.lm.config, "quantization_config", None) is None
    later = make(tmp_path / "later", objective="sft", model=str(tmp_path / "run/model"), max_steps=1)
    before = train(later)["eval"]["nats_per_token_before"]
    assert before == pytest.approx(done["eval"]["nats_per_token"], abs=1e-4)


@pytest.mark.parametrize(
    "options", [{"objective": "rm"}, {"gradient_checkpointing": True}, {"prefix_tree": False}, {"lora_variant": "dora"}]
)
def test_other_runs(options: dict[str, Any], make: MakeConfig, kind: str, tmp_path: Path) -> None:
    done = train(make(tmp_path / "run", quantize=kind, **({"max_steps": 2} | options)))
    assert 0 <= done["eval"]["accuracy_macro"] <= 1


# ---- the plan, and refusals ----


def test_memory_of_the_plan_is_that_of_the_weights(base: Path, make: MakeConfig, kind: str, tmp_path: Path) -> None:
    config = make(tmp_path, quantize=kind)
    skeleton = load_skeleton(str(base), torch.float32)[0]
    shape = shape_of(skeleton, make_trainable(skeleton.lm, config), torch.device("cpu"), kind)
    lm = make_trainable(load_base(str(base), quantize=kind).lm, config)
    numbers = [*lm.parameters(), *(v for n, v in quantized.scales(lm) if not n.endswith("bitsandbytes__nf4"))]
    means = 4 * len(linear(lm)) if kind == "nf4" else 0  # of each layer's scales, which its state has as text
    assert shape.weight_bytes == sum(value.numel() * value.element_size() for value in numbers) + means
    plans = [plan(make(tmp_path, **options)) for options in ({}, {"quantize": kind})]
    assert plans[0]["parameters"] == plans[1]["parameters"]
    assert plans[1]["memory_gib"]["weights"] < 0.75 * plans[0]["memory_gib"]["weights"]
    made = plans[1]["memory_gib"]["activations"] - plans[0]["memory_gib"]["activations"]
    assert made * 2**30 == pytest.approx(8 * 64 * 128)  # the largest weight, in fp32 twice


def test_what_is_refused(base: Path, make: MakeConfig, tmp_path: Path, tiny_base: Path, monkeypatch: Any) -> None:
    narrow = make(tmp_path / "run", quantize="nf4", model=str(tiny_base))
    for start in (train, plan):
        with pytest.raises(PrlhfError, match=r"layers of a multiple of 64 inputs on a CPU, and one of .* has 32; use"):
            start(narrow)
    with pytest.raises(PrlhfError, match="quantize = nf4 is not used with full_finetune = true"):
        TrainConfig(quantize="nf4", full_finetune=True)
    with pytest.raises(PrlhfError, match="quantize = int8 does not go with parallel = fsdp"):
        check_share(make(tmp_path, quantize="int8"), ClusterConfig(workers=2, parallel="fsdp"))
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    with pytest.raises(PrlhfError, match="is quantized already; leave quantize out"):
        load_base(str(tmp_path / "base"), quantize="nf4")
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(PrlhfError, match=r"nf4 needs the package bitsandbytes; pip install 'prlhf\[quantize\]'"):
        train(make(tmp_path / "run", quantize="nf4"))
    assert not (tmp_path / "run").exists()
