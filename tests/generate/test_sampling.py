"""Random numbers belong to rows, not to batches; the race samples the softmax; a nucleus is the fewest that hold p."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

from prlhf.generate import sampling
from prlhf.generate.sampling import choose, nucleus, race, uniform


def frequencies(chosen: Tensor, probabilities: Tensor) -> None:
    """Within four standard errors of the probabilities, token by token."""
    rows = len(chosen)
    for token, p in enumerate(probabilities.tolist()):
        assert (chosen == token).float().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / rows))


@pytest.mark.parametrize("vocabulary", [1, 2, 4, 5, 17, 100])
def test_two_rounds_sample_the_softmax(vocabulary: int) -> None:
    """In rows of different seeds, and in the steps of one row; with whole and with broken blocks."""
    scores = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 1.5
    many = 4000
    frequencies(race(scores.expand(many, -1), range(many), [0] * many), scores.softmax(0))
    frequencies(race(scores.expand(many, -1), [7] * many, range(many)), scores.softmax(0))


def test_excluded_tokens_are_never_drawn() -> None:
    scores = torch.full((500, 30), -math.inf)
    scores[:, [3, 29]] = torch.tensor([0.0, 1.0])
    chosen = race(scores, range(500), [0] * 500)
    assert set(chosen.tolist()) == {3, 29}


def test_splitmix_as_published() -> None:
    """The first outputs for seed 1234567, as Rosetta Code lists them."""
    expected = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423], dtype=np.uint64)
    found = uniform([1234567], [0], 3)
    np.testing.assert_allclose(found[0], (expected >> np.uint64(12)).astype(float) / 2**52, rtol=0, atol=2.0**-52)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**31)), min_size=1, max_size=6), st.integers(1, 9))
def test_numbers_belong_to_seed_and_step(rows: list[tuple[int, int]], count: int) -> None:
    seeds, steps = zip(*rows, strict=True)
    together = uniform(seeds, steps, count)
    assert ((together > 0) & (together < 1)).all()
    for i, (seed, step) in enumerate(rows):
        assert (uniform([seed], [step], count + 3)[0, :count] == together[i]).all()


def test_numbers_are_even_and_unrelated() -> None:
    found = uniform(range(100), [3] * 100, 1000)
    assert len(np.unique(found)) == found.size
    assert found.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * found.size))
    assert np.abs(np.corrcoef(found)[np.triu_indices(100, 1)]).max() < 6 / math.sqrt(1000)
    steps = uniform([5] * 100, range(100), 1000)
    assert np.abs(np.corrcoef(steps)[np.triu_indices(100, 1)]).max() < 6 / math.sqrt(1000)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("few", [3, 256])
def test_the_nucleus_is_transformers(monkeypatch: pytest.MonkeyPatch, top_p: float, few: int) -> None:
    """Also where some rows' nucleus is wider than what is looked through first."""
    monkeypatch.setattr(sampling, "FEW", few)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 50, generator=generator) * torch.tensor([0.1, 1.0, 3.0, 9.0]).repeat(2)[:, None]
    assert torch.equal(nucleus(scores, top_p), TopPLogitsWarper(top_p)(None, scores))


def test_temperature_scales_and_zero_is_arg_max() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0])
    many = scores.expand(4000, -1)
    frequencies(choose(many, range(4000), [0] * 4000, temperature=0.5), (scores * 2).softmax(0))
    assert choose(many[:5], range(5), [0] * 5, temperature=0).tolist() == [2] * 5


def test_half_precision_is_sampled_in_full() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(64, -1)
    args = (range(64), [0] * 64)
    assert torch.equal(choose(scores.bfloat16(), *args), choose(scores, *args))
