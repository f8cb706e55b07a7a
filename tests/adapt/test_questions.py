"""The expected information is the mutual information, and the question that is chosen is one that tells something."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prlhf.adapt.questions import best_question, expected_information, information, posterior_from


def by_samples(mean: float, variance: float) -> float:
    """The mutual information from two million draws of the log-odds."""
    logits = np.random.default_rng(0).normal(mean, math.sqrt(variance), 2_000_000)
    chance = 1 / (1 + np.exp(-logits))

    def entropy(p: np.ndarray) -> np.ndarray:
        p = np.clip(p, 1e-300, 1 - 1e-16)
        found: np.ndarray = -p * np.log(p) - (1 - p) * np.log1p(-p)
        return found

    return float(entropy(np.array(chance.mean())) - entropy(chance).mean())


@pytest.mark.parametrize(
    ("mean", "variance"), [(0.0, 0.04), (0.0, 1.0), (1.0, 4.0), (-3.0, 2.0), (6.0, 9.0), (0.5, 100.0)]
)
def test_information_is_that_of_samples(mean: float, variance: float) -> None:
    found = information(torch.tensor([mean]), torch.tensor([variance]))
    assert found.item() == pytest.approx(by_samples(mean, variance), abs=1.5e-3)


@pytest.mark.parametrize(("margin", "slope"), [(0.0, 1.0), (0.5, 2.0), (-2.0, 6.0)])
def test_information_is_that_of_both_answers_enumerated(margin: float, slope: float) -> None:
    """What is still open of z, on a grid, before the answer and after each of both answers."""
    grid = torch.linspace(-8, 8, 4001).double()
    before = torch.softmax(-grid.square() / 2, 0)
    first = torch.sigmoid(margin + slope * grid)
    after = 0.0
    for chance in (first, 1 - first):
        of_answer = (before * chance).sum()
        after += (of_answer * torch.special.entr(before * chance / of_answer).sum()).item()
    told = torch.special.entr(before).sum().item() - after
    known = posterior_from(torch.zeros(0).double(), torch.zeros(0, 1).double(), [])
    one = torch.tensor([margin]).double(), torch.tensor([[slope]]).double()
    assert expected_information(*one, known).item() == pytest.approx(told, abs=1e-6)


def test_information_at_its_ends() -> None:
    """Nothing where nothing is uncertain, log 2 at most, the same whichever response is first, and finite."""
    means = torch.tensor([0.0, 3.0, 0.0, -700.0, 2.0, -2.0])
    found = information(means, torch.tensor([0.0, 0.0, 1e4, 1.0, 5.0, 5.0]))
    assert found[:2].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found[2].item() == pytest.approx(math.log(2), abs=0.05)
    assert found[3].item() == pytest.approx(0, abs=1e-12)
    assert found[4].item() == pytest.approx(found[5].item())
    assert ((found >= 0) & (found <= math.log(2))).all()


def test_it_depends_on_z_by_the_margin_alone() -> None:
    """Along what is known, and where the answer is known, there is little to learn."""
    slopes = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]).double()
    known = posterior_from(torch.zeros(3).double(), slopes, [(0, 1)] * 30)
    told = expected_information(torch.tensor([0.0, 0.0, 9.0]).double(), slopes, known)
    expected = information(torch.zeros(1), torch.tensor([4.0]))
    assert told[1].item() == pytest.approx(expected.item())  # nothing was said of it: the prior
    assert told[0] < told[1] / 5
    assert told[2] < told[1] / 5


def test_a_new_direction_is_asked_before_repeats() -> None:
    """Twenty pairs of what three answers told already, and a weaker one of what nobody asked."""
    margins, slopes = torch.zeros(24).double(), torch.zeros(24, 4).double()
    slopes[:23, 0], slopes[23, 2] = 3.0, 2.0
    known = posterior_from(margins, slopes, [])
    first = best_question(margins, slopes, known, range(24))
    assert first is not None
    assert first[0] == 0
    answered = [(0, 1), (1, 1), (2, 1)]
    found = best_question(margins, slopes, posterior_from(margins, slopes, answered), range(3, 24))
    assert found is not None
    assert found[0] == 23
    assert best_question(margins, slopes, known, []) is None


def test_answers_move_the_posterior() -> None:
    margins, slopes = torch.zeros(2).double(), torch.eye(2).double()
    first, second = (posterior_from(margins, slopes, [(0, sign)]).modes[0, 0].item() for sign in (1, -1))
    assert first == pytest.approx(-second)
    assert first > 0.2
    surprise = posterior_from(margins + 3, slopes, [(0, -1)]).modes[0, 0].item()  # the margin spoke for the other one
    assert surprise < 1.5 * second
    tie = posterior_from(margins, slopes, [(0, 1), (0, -1)])
    assert tie.modes.abs().max() < 1e-9
    assert tie.covariances[0, 0, 0] < 0.7 < tie.covariances[0, 1, 1]
