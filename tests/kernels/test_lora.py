"""Fast LoRA layers are PEFT's LoRA layers: the same values, gradients, parameters and hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from prlhf.kernels import speed_up
from prlhf.kernels.lora import FastLora, RoundedLinear, use_fast_lora


class Net(nn.Module):
    """Two linear layers, the second with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20, bias=False), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A PEFT model with an adapter whose B is not zero, its base in `dtype`."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second"]} | options
    model = get_peft_model(net, LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def found(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The result, and the gradients of all that is trained and of the input."""
    x = x.clone().requires_grad_()
    out = model(x)
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad} | {"x": x}
    grads = torch.autograd.grad(out.float().square().sum(), list(wanted.values()))
    return {"out": out, **dict(zip(wanted, grads, strict=True))}


def the_layers(model: Any) -> list[FastLora]:
    return [module for module in model.modules() if isinstance(module, FastLora)]


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_bias": True}, {"use_dora": True}])
def test_in_fp32_they_are_the_layers_of_peft(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    model, x = adapted(**options), torch.randn(shape)
    expected = found(model, x)
    use_fast_lora(model)
    assert len(the_layers(model)) == 2
    assert all(layer._plain() == (options in ({}, {"use_rslora": True})) for layer in the_layers(model))
    result = found(model, x)
    assert result.keys() == expected.keys()
    for name, value in result.items():
        rounding = 1e-5 * float(expected[name].detach().abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=rounding, msg=lambda text, n=name: n + text)


def test_in_bf16_they_are_as_near_to_the_truth_as_those_of_peft() -> None:
    x = torch.randn(64, 12)
    model = adapted(torch.bfloat16)
    exact = adapted()
    exact.load_state_dict(model.state_dict())
    truth, peft = found(exact, x.bfloat16().float()), found(model, x.bfloat16())
    use_fast_lora(model)
    ours = found(model, x.bfloat16())
    for name, value in ours.items():
        assert value.dtype == peft[name].dtype, name
        error, limit = (_distance(each, truth[name]) for each in (value, peft[name]))
        assert error < 2 * limit + 0.005, f"{name}: {error:.4f}, PEFT {limit:.4f}"


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().float(), b.detach().float()
    return float((a - b).norm() / b.norm())


def test_in_bf16_the_input_is_never_copied_to_fp32() -> None:
    model = adapted(torch.bfloat16)
    names = model.state_dict().keys()
    use_fast_lora(model)
    kinds: list[torch.dtype] = []
    for layer in the_layers(model):
        for part in (layer.base_layer, layer.lora_A["default"]):
            part.register_forward_hook(lambda _part, inputs, out: kinds.extend((inputs[0].dtype, out.dtype)))
        assert isinstance(layer.lora_B["default"], RoundedLinear)
        layer.lora_B["default"].register_forward_hook(lambda *_: pytest.fail("its product is a tensor of its own"))
    assert model(torch.randn(3, 12).bfloat16()).dtype == torch.bfloat16
    assert kinds == [torch.bfloat16] * 8
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert model.state_dict().keys() == names


def test_what_was_turned_off_merged_or_hooked_acts() -> None:
    model, x = adapted(), torch.randn(5, 12)
    with model.disable_adapter():
        base = model(x)
    whole = model(x)
    use_fast_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base)
    model.merge_adapter()
    torch.testing.assert_close(model(x), whole, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    handles = [
        layer.lora_A["default"].register_forward_hook(lambda *values: values[2] * 0) for layer in the_layers(model)
    ]
    torch.testing.assert_close(model(x), base, rtol=1e-4, atol=1e-4)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(model(x), whole, rtol=1e-4, atol=1e-4)


def test_speed_up_replaces_them_on_a_cpu_only() -> None:
    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    lm = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2))
    model = get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    weights = {name: value.data_ptr() for name, value in model.named_parameters()}
    speed_up(model, torch.device("cuda"))
    assert not the_layers(model)
    speed_up(model, torch.device("cpu"))
    assert len(the_layers(model)) == 2
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == weights


def test_dropout_acts_in_training_only() -> None:
    model, x = adapted(lora_dropout=0.5), torch.randn(5, 12)
    model.eval()
    expected = model(x)
    use_fast_lora(model)
    torch.testing.assert_close(model(x), expected)
    model.train()
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), first)
    assert not torch.equal(model(x), first)
