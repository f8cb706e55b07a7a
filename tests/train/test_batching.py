"""A batch as parts: every reading once, all terms find their values, and the parts' losses are the batch's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses import loop_of, moved_policy, whole_loss

from prlhf.dataset import Comparison, read_prepared
from prlhf.model.encoding import Encoded
from prlhf.model.prefix_tree import Pack
from prlhf.train.batches import ByPrompt, parts_of
from prlhf.train.loop import Loop

MakeConfig = Callable[..., Any]


@pytest.fixture
def rows(prepared: Path) -> list[Comparison]:
    return read_prepared(prepared).train[:6]


def gradients(loop: Loop, batch: list[Encoded]) -> dict[str, torch.Tensor]:
    loop.model.zero_grad()
    loss = loop.backward([batch])
    found = {n: p.grad.to_dense().clone() for n, p in loop.model.named_parameters() if p.grad is not None}
    return {"loss": loss} | found


@pytest.mark.parametrize("options", [{}, {"objective": "rm"}, {"loss": "ipo", "nll": 0.5}, {"user_model": "cluster"}])
def test_parts_of_any_size_padded_or_not_are_the_same_step(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison], options: dict[str, Any]
) -> None:
    settings = ({"pack_tokens": 4096}, {"pack_tokens": 1}, {"pack_tokens": 90}, {"prefix_tree": False})
    steps = []
    for one in settings:
        loop = loop_of(moved_policy(make_config(tmp_path, **options, **one)), rows)
        parts = list(parts_of(loop.engine, loop.train_set.encoded, loop.objective))
        assert all(isinstance(part.layout, Pack) is ("prefix_tree" not in one) for part in parts)
        assert (len(parts) > 2) is (one == {"pack_tokens": 1} or one == {"pack_tokens": 90})
        steps.append(gradients(loop, loop.train_set.encoded))
        whole = whole_loss(loop, loop.train_set.encoded)
        torch.testing.assert_close(whole, steps[-1]["loss"], rtol=1e-5, atol=1e-6)
    for other in steps[1:]:
        assert set(other) == set(steps[0])
        for name, value in steps[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_generic_users_readings_are_shared_by_all(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison]
) -> None:
    """The same pair rated by three users: four readers of one prompt with two responses, not six."""
    loop = loop_of(moved_policy(make_config(tmp_path, user_text=False)), rows[:1])
    pair = loop.train_set.encoded[0]
    batch = [Encoded([], pair.prompt, pair.chosen, pair.rejected, user) for user in (1, 2, 3)]
    (part,) = parts_of(loop.engine, batch, loop.objective)
    assert isinstance(part.layout, Pack)
    assert part.layout.readings == 8
    assert part.layout.user_indices.tolist() == [0, 1, 2, 3]
    generic = next(term for term in part.terms if not term.logged)
    assert generic.where.tolist() == [[generic.where[0, 0].item()] * 3, [generic.where[1, 0].item()] * 3]


prompts = st.lists(st.sampled_from("abcd"), max_size=12)


@given(prompts, st.integers(0, 3))
def test_an_order_by_prompt_keeps_prompts_together(prompts: list[str], epoch: int) -> None:
    sampler = ByPrompt(prompts, seed=1, epoch=epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(prompts)))
    changes = sum(prompts[a] != prompts[b] for a, b in pairwise(order))
    assert changes == max(0, len(set(prompts)) - 1)
    assert order == list(sampler)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    prompts = [f"p{i // 2}" for i in range(20)]
    sampler, other = ByPrompt(prompts, 1), ByPrompt(prompts, 2)
    first = list(sampler)
    assert list(ByPrompt(prompts, 1, epoch=1)) != first
    assert list(other) != first
