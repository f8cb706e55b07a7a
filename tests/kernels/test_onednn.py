"""Linear layers through oneDNN are linear layers, and are plain ones where the operator cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from prlhf.kernels import onednn, speed_up
from prlhf.kernels.onednn import ON_X86, OneDnnLinear, agrees, dense, faster, times, times_weight, use_onednn

pytestmark = pytest.mark.skipif(not ON_X86, reason="oneDNN's operator is for x86")


@pytest.fixture(autouse=True)
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip where the operator is the faster way, whichever this one is."""
    monkeypatch.setattr(onednn, "faster", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 1, 5), (0, 5), (9, 5), (2, 4, 5)])
def test_onednn_layers_are_linear_layers(shape: tuple[int, ...], frozen: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3, bias=bias), torch.randn(shape, requires_grad=True)
    layer.weight.requires_grad_(not frozen)

    def run() -> list[Tensor]:
        out = layer(x)
        wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
        return [out, *torch.autograd.grad(out.square().sum(), wanted)]

    expected = run()
    plain, holder = layer, nn.ModuleList([layer])
    use_onednn(holder)
    layer = holder[0]
    assert isinstance(layer, OneDnnLinear)
    assert type(plain) is nn.Linear
    assert layer.weight is plain.weight
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_few_rows_are_multiplied_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in generation with few prompts, where oneDNN takes longer."""
    holder = nn.ModuleList([nn.Linear(5, 3)])
    use_onednn(holder)
    rows: list[int] = []
    holder[0](torch.randn(9, 5))  # the weight's shape is tried out
    monkeypatch.setattr(onednn, "times", lambda x, *rest: rows.append(len(x)) or times(x, *rest))
    for count in (1, onednn.FEW - 1, onednn.FEW, 9):
        holder[0](torch.randn(count, 5))
    assert rows == [onednn.FEW, 9]


def test_only_plain_fp32_layers_change() -> None:
    class Own(nn.Linear):
        pass

    holder = nn.ModuleList([nn.Linear(2, 2).to(torch.bfloat16), Own(2, 2)])
    use_onednn(holder)
    assert [type(layer) for layer in holder] == [nn.Linear, Own]


def test_only_on_a_cpu() -> None:
    size = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    lm = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=2))
    speed_up(lm, torch.device("cuda"))
    assert not any(isinstance(module, OneDnnLinear) for module in lm.modules())
    speed_up(lm, torch.device("cpu"))
    assert any(isinstance(module, OneDnnLinear) for module in lm.modules())


def test_hooks_and_mode_stay() -> None:
    seen: list[int] = []
    layer = nn.Linear(2, 2).eval()
    layer.register_forward_hook(lambda *_: seen.append(1))
    holder = nn.ModuleList([layer])
    use_onednn(holder)
    holder[0](torch.ones(1, 2))
    assert (seen, holder[0].training) == ([1], False)


def test_views_with_gaps_are_copied_first() -> None:
    """oneDNN multiplies them too, a thousand times as slowly."""
    whole = torch.randn(4, 3, 5)
    assert dense(whole) is whole
    assert dense(whole[0]).data_ptr() == whole.data_ptr()
    assert dense(whole[0].t()).stride() == (1, 5)
    gaps = whole[:, 1]
    assert dense(gaps).is_contiguous()
    torch.testing.assert_close(times(gaps, gaps), gaps @ gaps.t())


# ---- without an operator that can be trusted ----


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was found out about the operator is found out again."""
    monkeypatch.setattr(onednn, "_agrees", {})
    found = onednn.operator, onednn.usable
    for function in found:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in found:
        function.cache_clear()


def broken(kind: str) -> Any:
    def raises(*args: Any) -> Tensor:
        raise RuntimeError("unsupported")

    def takes_less(left: Tensor, right: Tensor) -> Tensor:
        return left @ right.t()

    def is_off(left: Tensor, right: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        return nn.functional.linear(left, right, bias) * 1.001

    def gives_nan(left: Tensor, right: Tensor, *rest: Any) -> Tensor:
        return left @ right.t() * float("nan")

    return {"raises": raises, "takes less": takes_less, "is off": is_off, "gives nan": gives_nan}[kind]


@pytest.mark.parametrize("kind", ["raises", "takes less", "is off", "gives nan"])
@pytest.mark.parametrize("later", [False, True])
def test_an_operator_that_differs_is_not_used(
    kind: str, later: bool, forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where that shows before layers are replaced, nor where it shows for one shape of weight only."""
    layer, x = nn.Linear(5, 3), torch.randn(4, 5, requires_grad=True)
    expected = [layer(x), *torch.autograd.grad(layer(x).sum(), [x, layer.weight])]
    holder = nn.ModuleList([layer])
    if later:
        use_onednn(holder)
        assert isinstance(holder[0], OneDnnLinear)
    monkeypatch.setattr(onednn, "operator", lambda: broken(kind))
    if not later:
        use_onednn(holder)
        assert type(holder[0]) is nn.Linear
    found = [holder[0](x), *torch.autograd.grad(holder[0](x).sum(), [x, layer.weight])]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(times_weight(torch.ones(2, 3), holder[0]), torch.ones(2, 3) @ layer.weight)


def test_without_the_operator(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert onednn.operator() is None
    holder = nn.ModuleList([nn.Linear(5, 3)])
    use_onednn(holder)
    assert type(holder[0]) is nn.Linear


def test_not_on_arm(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is right there, but runs reference code where PyTorch has its own for the chip."""
    monkeypatch.setattr(onednn, "ON_X86", False)
    holder = nn.ModuleList([nn.Linear(5, 3)])
    use_onednn(holder)
    assert (onednn.operator(), type(holder[0])) == (None, nn.Linear)


MAKERS = {"vendor_id\t: AuthenticAMD\n": True, "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n": False}


@pytest.mark.parametrize("cpuinfo", MAKERS)
def test_only_on_chips_where_it_is_faster(cpuinfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's library multiplies at least as fast on Intel's chips."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(onednn, "faster", lambda: faster(path))
    holder = nn.ModuleList([nn.Linear(5, 3)])
    use_onednn(holder)
    assert isinstance(holder[0], OneDnnLinear) == MAKERS[cpuinfo]


@pytest.mark.parametrize("processor", ["AMD64 Family 25 Stepping 0, AuthenticAMD", "Intel64, GenuineIntel", ""])
def test_the_maker_where_there_is_no_proc(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: processor)
    assert faster(tmp_path / processor / "absent") == ("AMD64" in processor)


def test_weights_that_are_not_finite_are_no_difference(forgotten: None) -> None:
    layer = nn.Linear(5, 3)
    layer.weight.data[0, 0] = float("nan")
    assert agrees(layer.weight, layer.bias)
