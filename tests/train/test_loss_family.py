"""The DPO family: against numbers worked out by hand, by its properties, and in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import loop_of, loss_of, moved_policy

from prlhf.config import TrainConfig
from prlhf.dataset import read_prepared
from prlhf.errors import PrlhfError
from prlhf.extensions import LOSSES
from prlhf.model.readings import padded, readings_of
from prlhf.recipes import load_recipe, resolve
from prlhf.train import losses
from prlhf.train.losses import preference_loss
from prlhf.train.run import train

MakeConfig = Callable[..., Any]

NAMES = tuple(LOSSES.ours)
# Log-ratios of two comparisons, chosen first: D = 4 and -4, rewards at beta 0.5: (1, -1) and (-0.5, 1.5).
# Per token, by these lengths: (1, -0.5) and (-0.25, 1.5), so D = 1.5 and -1.75.
RATIOS = torch.tensor([[2.0, -1.0], [-2.0, 3.0]])
LENGTHS = torch.tensor([[2, 4], [4, 2]])


def smoothing_for(name: str) -> float:
    return 0.1 if name in ("robust", "exo_pair") else 0.0


def test_which_losses_read_what() -> None:
    assert len(NAMES) == 11
    facts = {fact: {name for name in NAMES if getattr(LOSSES[name], fact)} for fact in ("smoothed", "per_token")}
    assert facts == {
        "smoothed": {"sigmoid", "sigmoid_norm", "robust", "exo_pair"},
        "per_token": {"ipo", "sigmoid_norm"},
    }
    assert [name for name in NAMES if LOSSES[name].smoothing_required] == ["exo_pair"]


# ---- numbers: log(1 + e^-2) = 0.1269280, s(2) = 0.8807971, s(1) = 0.7310586, s(0.5) = 0.6224593, s(1.5) = 0.8175745


@pytest.mark.parametrize(
    ("name", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, [0.1269280, 2.1269280]),  # -log s(2), -log s(-2)
        ("sigmoid", 0.1, [0.3269280, 1.9269280]),  # 0.9 x 0.1269280 + 0.1 x 2.1269280, and the other way round
        ("sigmoid_norm", 0.0, [0.3868710, 1.2234446]),  # -log s(0.75), -log s(-0.875)
        ("robust", 0.1, [-0.1230720, 2.3769280]),  # (0.9 x 0.1269280 - 0.1 x 2.1269280) / 0.8, and so on
        # s(2) (log s(2) - log 0.9) + s(-2) (log s(-2) - log 0.1) = -0.0189966 + 0.0209388, and for -2
        ("exo_pair", 0.1, [0.0019422, 1.6753357]),
        ("hinge", 0.0, [0.0, 3.0]),  # 1 - 2 < 0; 1 + 2
        ("ipo", 0.0, [0.25, 7.5625]),  # (1.5 - 1)^2, (-1.75 - 1)^2
        ("sppo_hard", 0.0, [2.0, 20.0]),  # (2 - 1)^2 + (-2 + 1)^2, (-1 - 1)^2 + (3 + 1)^2
        ("nca_pair", 0.0, [1.1265234, 2.0618222]),  # 0.3132617 + 1.3132617 / 2 + 0.3132617 / 2, and so on
        ("apo_zero", 0.0, [0.5378828, 1.4400338]),  # s(-1) + s(-1), s(0.5) + s(1.5)
        ("apo_down", 0.0, [0.8502615, 1.2583378]),  # s(1) + s(-2), s(-0.5) + s(2)
        ("discopop", 0.0, [0.1353353, 2.1269280]),  # all exponential: e^-2; all logistic: -log s(-2)
    ],
)
def test_against_numbers(name: str, smoothing: float, expected: list[float]) -> None:
    losses = preference_loss(name, RATIOS, LENGTHS, 0.5, smoothing)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 0.8465736), (0.1, 0.8751809)])
def test_discopop_between_its_two_halves(margin: float, expected: float) -> None:
    """z = 0: (log 2 + 1) / 2. z = 0.05, weight s(1): 0.2689414 x 0.6684597 + 0.7310586 x 0.9512294: it rises there."""
    loss = LOSSES["discopop"](torch.tensor([margin]), torch.tensor([0.0]), 0.5, 0.0)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


# ---- properties ----


@pytest.mark.parametrize("name", NAMES)
def test_label_smoothing_is_read_by_those_that_say_so(name: str) -> None:
    little, more = (preference_loss(name, RATIOS, LENGTHS, 0.5, smoothing) for smoothing in (0.1, 0.2))
    assert torch.equal(little, more) is not LOSSES[name].smoothed


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_read_by_those_that_say_so(name: str) -> None:
    longer, shorter = (preference_loss(name, RATIOS, lengths, 0.5, 0.1) for lengths in (LENGTHS, LENGTHS // 2))
    assert torch.equal(longer, shorter) is not LOSSES[name].per_token


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"discopop"}))  # which rises at 0, see above
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_from_the_reference_on_the_rejected_response_is_pushed_down(name: str, beta: float) -> None:
    ratios = torch.zeros(2, 1, requires_grad=True)
    preference_loss(name, ratios, torch.ones(2, 1), beta, smoothing_for(name)).sum().backward()
    assert ratios.grad is not None
    chosen, rejected = ratios.grad.flatten().tolist()
    assert rejected > 0
    assert chosen == 0 if name == "apo_down" else chosen < 0


@pytest.mark.parametrize("name", NAMES)
@given(ratios=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), beta=st.floats(0.01, 5))
def test_finite_however_far_the_policy_is(name: str, ratios: tuple[float, float], beta: float) -> None:
    tensor = torch.tensor(ratios)[:, None].requires_grad_()
    loss = preference_loss(name, tensor, torch.ones(2, 1), beta, smoothing_for(name)).sum()
    loss.backward()
    assert loss.isfinite()
    assert tensor.grad is not None
    assert tensor.grad.isfinite().all()


betas = st.floats(0.01, 5)
margins = st.floats(-50, 50)


def at(name: str, margin: float, beta: float, smoothing: float = 0.0) -> tuple[float, float]:
    """The loss of one comparison with that margin and its derivative by the margin, in double precision."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](chosen, torch.zeros(1, dtype=torch.float64), beta, smoothing)
    loss.sum().backward()
    assert chosen.grad is not None
    return loss.item(), chosen.grad.item()


@given(margins, betas)
def test_without_smoothing_sigmoid_and_robust_are_dpo(margin: float, beta: float) -> None:
    dpo = losses.dpo(torch.tensor([margin], dtype=torch.float64), beta).item()
    assert at("sigmoid", margin, beta)[0] == at("robust", margin, beta)[0] == dpo


@given(margins, betas, st.floats(0, 0.45))
def test_robust_is_unbiased_under_flips(margin: float, beta: float, flips: float) -> None:
    """A share of flipped preferences, of which the loss knows, leaves its expectation DPO's (2403.00409)."""
    expectation = (1 - flips) * at("robust", margin, beta, flips)[0] + flips * at("robust", -margin, beta, flips)[0]
    assert expectation == pytest.approx(at("sigmoid", margin, beta)[0], rel=1e-6, abs=1e-6)


@given(betas, st.floats(0.001, 0.45))
@pytest.mark.parametrize("name", ["sigmoid", "exo_pair"])
def test_smoothing_stops_where_the_policy_is_as_sure_as_the_labels(name: str, beta: float, smoothing: float) -> None:
    """s(beta D) = 1 - e is the minimum; there EXO's divergence is 0."""
    margin = math.log((1 - smoothing) / smoothing) / beta
    loss, slope = at(name, margin, beta, smoothing)
    assert slope == pytest.approx(0, abs=1e-9)
    assert at(name, margin - 0.1 / beta, beta, smoothing)[0] > loss < at(name, margin + 0.1 / beta, beta, smoothing)[0]
    if name == "exo_pair":
        assert loss == pytest.approx(0, abs=1e-9)


@given(margins, betas)
def test_hinge_lets_go_at_one_over_beta(margin: float, beta: float) -> None:
    loss, slope = at("hinge", margin, beta)
    assert (loss, slope) == ((0, 0) if beta * margin >= 1 else (pytest.approx(1 - beta * margin), -beta))


@given(margins, betas)
def test_ipo_pulls_to_half_over_beta(margin: float, beta: float) -> None:
    assert at("ipo", 1 / (2 * beta), beta) == (0, 0)
    loss, slope = at("ipo", margin, beta)
    assert loss == pytest.approx((margin - 0.5 / beta) ** 2)
    assert slope == pytest.approx(2 * (margin - 0.5 / beta))


def test_discopop_rises_where_training_starts() -> None:
    slopes = [at("discopop", z, 1.0)[1] for z in (-0.13, -0.11, 0.0, 0.06, 0.08)]
    assert [slope > 0 for slope in slopes] == [False, True, True, True, False]


# ---- in training ----


@pytest.mark.parametrize("name", ["ipo", "nca_pair"])
def test_both_terms_take_the_loss(tmp_path: Path, make_config: MakeConfig, prepared: Path, name: str) -> None:
    """alpha 0.3, beta 0.5, NLL 0.2, put together from log-probs taken one reading at a time."""
    rows = read_prepared(prepared).train[:3]
    policy = moved_policy(make_config(tmp_path, alpha=0.3, beta=0.5, nll=0.2, loss=name))
    loop = loop_of(policy, rows)
    batch = loop.train_set.encoded
    reference = loop.objective.reference.log_probs(batch).view(2, -1)
    lengths = torch.tensor([[len(e.chosen) for e in batch], [len(e.rejected) for e in batch]])
    expected = 0.0
    for weight, users in ((0.3, [1, 2, 3]), (0.7, [0, 0, 0])):
        log_probs = policy.model(padded(readings_of(batch, users), 2, policy.tokenizer.pad_token_id)).view(2, -1)
        c, r = log_probs - reference
        if name == "ipo":
            loss = (c / lengths[0] - r / lengths[1] - 1.0) ** 2
        else:
            loss = -(torch.sigmoid(c / 2) * (torch.sigmoid(-c / 2) * torch.sigmoid(-r / 2)).sqrt()).log()
        expected += weight * (loss - 0.2 * log_probs[0] / lengths[0]).mean().item()
    assert loss_of(policy, rows).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "(alpha = 0.5, beta = 0.1, NLL weight = 0.0: the published objective)"),
        ({"loss": "ipo"}, "(alpha = 0.5, loss = ipo, beta = 0.1, NLL weight = 0.0)"),
        ({"label_smoothing": 0.1}, "(alpha = 0.5, label smoothing = 0.1, beta = 0.1, NLL weight = 0.0)"),
    ],
)
def test_a_run_tells_its_loss(tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any], said: str) -> None:
    train(make_config(tmp_path / "run", max_steps=1, **changes))
    assert said in (tmp_path / "run/model/README.md").read_text()
    recipe = load_recipe(tmp_path / "run/recipe.yaml")["train"]
    assert {key: recipe[key] for key in changes} == changes


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": "sigmiod"}, "loss = 'sigmiod' is not known; did you mean 'sigmoid'"),
        ({"label_smoothing": 0.5, "loss": "robust"}, "label_smoothing = 0.5 is refused: it is out of range"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1 is refused: it is out of range"),
        (
            {"label_smoothing": 0.1, "loss": "hinge"},
            "label_smoothing = 0.1 is not used with loss = hinge; leave label_smoothing out, or set loss to",
        ),
        ({"loss": "exo_pair"}, "label_smoothing = 0 makes loss = exo_pair infinite; set it to 0.001"),
        (
            {"loss": "ipo", "objective": "rm"},
            "loss = ipo is not used with objective = rm; leave loss out, or set objective to dpo",
        ),
        ({"label_smoothing": 0.1, "objective": "sft"}, "label_smoothing = 0.1 is not used with objective = sft"),
    ],
)
def test_refused_with_what_to_do(values: dict[str, Any], said: str) -> None:
    with pytest.raises(PrlhfError) as caught:
        resolve(TrainConfig, values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
