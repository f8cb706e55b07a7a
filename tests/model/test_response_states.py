"""Hidden states of responses: the base's own, however they are laid out, from disk where they were computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CONFIGS, PAD, WITHOUT_TREES, base_of, perturb, policy_of
from test_workers import run_workers
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.model.base_cache import BaseCache
from prlhf.model.checkpoint import assemble
from prlhf.model.encoding import Encoded
from prlhf.model.engine import Engine
from prlhf.model.personalized import Personalized, RewardModel
from prlhf.model.response_states import ResponseStates, open_states

STEM = [30, 31, 32, 33, 34, 35, 36, 37, 38]  # long enough to be shared
COMPARISONS = [
    Encoded([20, 21], [5, 6, 7, 8, 9, 10, 11, 12, 13], [*STEM, 40, 1], [*STEM, 41, 42, 43, 1], user_index=1),
    Encoded([], [5, 6, 7, 8, 9, 10, 11, 12, 13], [50, 1], [*STEM, 40, 1], user_index=2),
    Encoded([], [9], [1], [51, 52, 53, 1], user_index=0),
]


def states_of(model: Personalized, trees: bool = True, cache: BaseCache | None = None) -> ResponseStates:
    return ResponseStates(Engine(model, PAD, budget=40, trees=trees), cache)


def alone(name: str, prompt: list[int], response: list[int]) -> Tensor:
    """The mean of the states that predict the response, by plain transformers."""
    with torch.no_grad():
        layers = base_of(name).lm(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    depth = len(layers) - 1
    return torch.cat([layers[round(depth * k / 3)][0, len(prompt) - 1 : -1].mean(0) for k in (1, 2)])


@pytest.mark.parametrize("name", sorted(CONFIGS | WITHOUT_TREES))
def test_they_are_those_of_the_base_alone(name: str) -> None:
    """As trees and as padded rows, although the policy has an adapter and reads texts about users."""
    options = {"full_finetune": True} if name in WITHOUT_TREES else {}
    model = assemble(base_of(name), TrainConfig(**options), ["a"], {}).model if options else policy_of(name).model
    expected = [alone(name, row.prompt, row.chosen) - alone(name, row.prompt, row.rejected) for row in COMPARISONS]
    lengths = [np.log(11 / 13), np.log(2 / 11), np.log(1 / 4)]
    for trees in (True, False):
        found = states_of(model, trees).differences(COMPARISONS)
        torch.testing.assert_close(found[:, :-1], torch.stack(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[:, -1], torch.tensor(lengths, dtype=torch.float32))


def test_those_of_a_reward_model() -> None:
    config = TrainConfig(objective="rm", user_init="random")
    model = assemble(base_of("llama"), config, ["a", "b"], {}, RewardModel).model
    perturb(model)
    found, expected = (states_of(m).differences(COMPARISONS) for m in (model, policy_of("llama").model))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_second_run_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And finds every bit; another base finds nothing."""
    monkeypatch.setenv("PRLHF_CACHE", str(tmp_path))
    model = policy_of("llama").model
    first = states_of(model, cache=open_states(model.lm))
    first.fill(COMPARISONS, 2)
    again = states_of(model, cache=open_states(model.lm))
    again.fill(COMPARISONS, 2)
    assert (first.computed, first.cached, again.computed, again.cached) == (5, 0, 0, 5)
    assert torch.equal(first.differences(COMPARISONS), again.differences(COMPARISONS))
    with torch.no_grad():
        model.lm.get_input_embeddings().weight[5, 0] += 1e-3
    other = states_of(model, cache=open_states(model.lm))
    other.fill(COMPARISONS, 2)
    assert (other.computed, other.cached) == (5, 0)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_wide_values_on_disk(tmp_path: Path, width: int) -> None:
    """Found bit for bit in merged segments too; of two values the one with the smaller first number counts, whole."""
    rng = np.random.default_rng(0)
    values = {bytes([i]) * 16: rng.normal(size=width).astype(np.float32) for i in range(60)}
    cache = BaseCache(tmp_path, width=width)
    for key, value in values.items():
        cache.add({key: value})
    keys = [*reversed(values), bytes(16 * [99])]
    found = BaseCache(tmp_path, width=width).find(keys)
    assert found.shape == (61, width)
    assert np.array_equal(found[:-1], np.stack(list(values.values()))[::-1])
    assert np.isnan(found[-1]).all()
    lower = {key: np.float32([value[0] - 1, *value[1:] + 1]) for key, value in values.items()}
    cache.add(lower)
    cache.add(values)
    assert np.array_equal(cache.find(list(lower)), np.stack(list(lower.values())))


def test_a_state_with_nan_is_not_kept(tmp_path: Path) -> None:
    model = policy_of("llama").model
    model.lm.get_input_embeddings().weight.data[50] = torch.nan
    states = states_of(model, cache=BaseCache(tmp_path, width=32))
    states.fill(COMPARISONS, 2)
    again = states_of(model, cache=BaseCache(tmp_path, width=32))
    again.fill(COMPARISONS, 2)
    assert (again.computed, again.cached) == (1, 4)


def filled(_rank: int, place: Path) -> None:
    states = states_of(policy_of("llama").model)
    states.fill(COMPARISONS, 1)
    torch.save(states.differences(COMPARISONS), place / f"{_rank}.pt")
    assert states.computed in (2, 3)  # of five


def test_two_workers_share_the_pass(tmp_path: Path) -> None:
    run_workers(2, filled, tmp_path)
    found: list[Any] = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert torch.equal(*found)
    expected = states_of(policy_of("llama").model).differences(COMPARISONS)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
