"""rsLoRA and DoRA: their own equations, whole runs, and what other programs compute from their exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import policy_of

import prlhf
from prlhf.config import ClusterConfig, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.export.person import person_of
from prlhf.model.base import load_base
from prlhf.model.checkpoint import load_policy
from prlhf.model.readings import Reading, padded
from prlhf.train.dry_run import plan
from prlhf.train.on_ray import check_share
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
READ = Reading(0, (5, 6, 7, 8, 9), (20, 21, 22))


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_a_layer_is_its_equation(variant: str) -> None:
    """W + s B A with s = alpha / r or alpha / sqrt(r); DoRA: its rows at the lengths m that are trained."""
    policy = policy_of("llama", lora_variant=variant, lora_r=4, lora_alpha=6, user_model="uniform", user_tokens=0)
    layer = next(m for m in policy.model.lm.modules() if hasattr(m, "lora_A"))
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    assert b.abs().max() > 0
    weight = layer.base_layer.weight + (3.0 if variant == "rslora" else 1.5) * b @ a
    if variant == "dora":
        with torch.no_grad():
            layer.lora_magnitude_vector["default"].weight.mul_(torch.linspace(0.5, 2, len(weight)))
        magnitude = layer.lora_magnitude_vector["default"].weight
        assert magnitude.requires_grad
        weight = magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "user_in", "format"),
    [("rslora", "adapter", "peft"), ("rslora", "prompt", "hf-users"), ("dora", "prompt", "hf-users")],
)
def test_a_run_is_saved_loaded_and_exported(
    variant: str, user_in: str, format: str, make_config: MakeConfig, tiny_base: Path, tmp_path: Path
) -> None:
    options = {"lora_variant": variant, "user_in": user_in, "lora_r": 4, "user_text": False, "max_steps": 4}
    config = make_config(tmp_path / "run", **options)
    said = plan(config)["parameters"]["adapter"]
    train(config)
    policy = load_policy(tmp_path / "run", "cpu", "fp32")
    trained = [p for name, p in policy.model.lm.named_parameters() if "lora_" in name]
    assert said == sum(p.numel() for p in trained)
    done = prlhf.export(tmp_path / "run", "ann", tmp_path / "ann", format=format, precision="fp32")
    assert done.compared is not None
    if format != "peft":
        assert done.compared.difference < 1e-3
        return
    from peft import PeftModel

    lm = PeftModel.from_pretrained(load_base(str(tiny_base)).lm, str(tmp_path / "ann")).eval()
    ids = torch.tensor([[*READ.before, *READ.response]])
    with torch.no_grad():
        found = lm(input_ids=ids).logits[0, 4:7].log_softmax(-1).gather(1, ids[0, 5:, None]).sum()
        expected = policy.model(padded([READ._replace(user_index=1)], 0, 0))
    assert float(found) == pytest.approx(float(expected), abs=1e-4)


def test_gguf_has_the_scale_of_rslora_and_no_dora(tmp_path: Path) -> None:
    """llama.cpp scales by alpha / r."""
    gguf = pytest.importorskip("gguf")
    from prlhf.export.gguf import write_gguf

    options: dict[str, Any] = {"lora_r": 4, "lora_alpha": 6, "user_model": "uniform", "user_tokens": 0}
    rslora, dora = (policy_of("llama", lora_variant=variant, **options) for variant in ("rslora", "dora"))
    write_gguf(person_of(rslora, tmp_path, "generic", 0), tmp_path)
    alpha = gguf.GGUFReader(tmp_path / "adapter.gguf").fields["adapter.lora.alpha"].contents()
    assert alpha / 4 == pytest.approx(6 / 4**0.5)
    with pytest.raises(PrlhfError, match=r"llama\.cpp has no adapters of DoRA"):
        write_gguf(person_of(dora, tmp_path, "generic", 0), tmp_path)


def test_what_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    for place in ("adapter", "both"):
        with pytest.raises(PrlhfError, match=f"lora_variant = dora .* so not with user_in = {place}; set lora_variant"):
            TrainConfig(lora_variant="dora", user_in=place)  # type: ignore[arg-type]
    with pytest.raises(PrlhfError, match="lora_variant = dora does not go with parallel = fsdp"):
        check_share(make_config(tmp_path, lora_variant="dora"), ClusterConfig(workers=2, parallel="fsdp"))
