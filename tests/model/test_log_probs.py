"""Chunked log-probs against log-softmax, for frozen and trained heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prlhf.kernels import onednn
from prlhf.kernels.onednn import ON_X86, OneDnnLinear, use_onednn
from prlhf.model.personalized import token_log_probs


def head_of(kind: str) -> nn.Linear:
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias="bias" in kind)
    head.requires_grad_("trained" in kind)
    holder = nn.Sequential(head)
    if "onednn" in kind:
        use_onednn(holder)
        assert isinstance(holder[0], OneDnnLinear) == ON_X86
    return holder[0]


KINDS = ["frozen", "frozen bias", "frozen onednn", "frozen bias onednn", "trained", "trained bias onednn"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 25, 10**6])
def test_chunks_are_log_softmax(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "faster", lambda: True)
    head = head_of(kind)
    hidden = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    targets, weights = torch.tensor([3, 0, 10, 3, 5, 5, 1]), torch.linspace(-2, 3, 7)

    def gradients(log_probs: Tensor) -> list[Tensor]:
        wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
        return list(torch.autograd.grad((log_probs * weights).sum(), wanted))

    plain = nn.functional.linear(hidden, head.weight, head.bias).log_softmax(-1)[torch.arange(7), targets]
    found = token_log_probs(head, hidden, targets, chunk)
    torch.testing.assert_close(found, plain)
    for a, b in zip(gradients(found), gradients(plain), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(token_log_probs(head, hidden, targets, chunk), plain)


def test_no_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    head, rows = head_of("frozen"), []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: rows.append(len(x)) or forward(self, x))
    token_log_probs(head, torch.randn(10, 6, requires_grad=True), torch.zeros(10, dtype=torch.long), chunk=11 * 4)
    assert rows == [4, 4, 2]


def test_bf16_heads_give_fp32_log_probs() -> None:
    head = head_of("frozen").to(torch.bfloat16)
    hidden = torch.randn(5, 6, dtype=torch.bfloat16, requires_grad=True)
    found = token_log_probs(head, hidden, torch.tensor([1, 2, 3, 4, 5]))
    assert found.dtype == torch.float32
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
