"""The objectives against numbers worked out by hand (natural logarithms, four or more digits)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prlhf.train import losses

T = torch.tensor
# margins: (-10 - -11) - (-20 - -18) = 1 + 2 = 3; (-5 - -5) - (-4 - -8) = 0 - 4 = -4
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = T([-10.0, -5.0]), T([-20.0, -4.0]), T([-11.0, -5.0]), T([-18.0, -8.0])
# sigmoid(0.5 * 3) = 0.8175745, -log = 0.2014133; sigmoid(0.5 * -4) = 0.1192029, -log = 2.1269280
PERSONAL = T([0.2014133, 2.1269280])


def test_margin_is_the_difference_of_log_ratios() -> None:
    assert losses.implicit_margin(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED).tolist() == [3.0, -4.0]


def test_dpo_against_numbers() -> None:
    torch.testing.assert_close(losses.dpo(T([3.0, -4.0]), 0.5), PERSONAL, rtol=0, atol=1e-6)
    torch.testing.assert_close(losses.dpo(T([0.0]), 7.0), T([math.log(2)]))
    # far from zero it is linear, not infinite
    torch.testing.assert_close(losses.dpo(T([-2000.0, 2000.0]), 0.5), T([1000.0, 0.0]))


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        # generic margins 0 and 2: losses log 2 = 0.6931472 and -log sigmoid(1) = 0.3132617
        (1.0, 1.1641707),  # (0.2014133 + 2.1269280) / 2
        (0.0, 0.5032044),  # (0.6931472 + 0.3132617) / 2
        (0.25, 0.6684460),  # 0.25 * 1.1641707 + 0.75 * 0.5032044
    ],
)
def test_the_mix_of_both_terms(alpha: float, expected: float) -> None:
    generic = losses.dpo(T([0.0, 2.0]), 0.5)
    loss = losses.mix([(alpha, PERSONAL), (1 - alpha, generic)], len(PERSONAL))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_one_term_of_weight_one_is_the_plain_mean() -> None:
    assert losses.mix([(1.0, T([1.0, 2.0, 6.0]))], 3).item() == 3.0


def test_nll_is_per_token() -> None:
    assert losses.nll_per_token(T([-6.0, -5.0]), T([3, 2])).tolist() == [2.0, 2.5]


@given(st.floats(-50, 50), st.floats(0.01, 5))
def test_gradient_of_dpo_is_beta_times_the_doubt(margin: float, beta: float) -> None:
    """d/dD -log sigmoid(beta D) = -beta sigmoid(-beta D) (the paper's Eq. 5)."""
    tensor = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    losses.dpo(tensor, beta).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.item() == pytest.approx(-beta / (1 + math.exp(beta * margin)), rel=1e-9, abs=1e-12)
