"""Which term of the objective depends on what (section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import as_users, loop_of, loss_of, moved_policy

from prlhf.dataset import Comparison, read_prepared
from prlhf.model.readings import padded, readings_of

MakeConfig = Callable[..., Any]


@pytest.fixture
def rows(prepared: Path) -> list[Comparison]:
    return read_prepared(prepared).train[:3]  # by ann, bob and cat


@pytest.mark.parametrize("kind", ["individual", "cluster"])
@pytest.mark.parametrize(("alpha", "depends"), [(0.0, False), (0.5, True), (1.0, True)])
def test_only_the_users_term_sees_the_users_id(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison], kind: str, alpha: float, depends: bool
) -> None:
    policy = moved_policy(make_config(tmp_path, user_model=kind, alpha=alpha))
    own, swapped = loss_of(policy, rows).item(), loss_of(policy, as_users(rows, [3, 1, 2])).item()
    assert (abs(own - swapped) > 1e-4) is depends


def test_the_loss_is_the_mix_of_both_readings(tmp_path: Path, make_config: MakeConfig, rows: list[Comparison]) -> None:
    """alpha 0.3, beta 0.5, NLL 0.2, put together from log-probs taken one reading at a time."""
    policy = moved_policy(make_config(tmp_path, alpha=0.3, beta=0.5, nll=0.2))
    loop = loop_of(policy, rows)
    batch = loop.train_set.encoded
    ref = loop.objective.reference.log_probs(batch).view(2, -1)
    lengths = torch.tensor([len(e.chosen) for e in batch])
    expected = 0.0
    for weight, users in ((0.3, [1, 2, 3]), (0.7, [0, 0, 0])):
        chosen, rejected = policy.model(padded(readings_of(batch, users), 2, policy.tokenizer.pad_token_id)).view(2, -1)
        margin = (chosen - ref[0]) - (rejected - ref[1])
        loss = -torch.nn.functional.logsigmoid(0.5 * margin) - 0.2 * chosen / lengths
        expected += weight * loss.mean().item()
    assert loss_of(policy, rows).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_both_terms_read_the_text_about_the_user(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison], alpha: float
) -> None:
    """The second term sets the identifier to 0 and keeps u^t (which the released PRISM loader loses)."""
    policy = moved_policy(make_config(tmp_path, alpha=alpha))
    before = loss_of(policy, rows).item()
    other = loss_of(policy, [replace(row, user_text="he hates lamps") for row in rows]).item()
    assert abs(before - other) > 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_uniform_user_model_has_one_term(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison], alpha: float
) -> None:
    """Whatever alpha is, which is refused with this user model where it is given."""
    config = make_config(tmp_path, user_model="uniform")
    policy = moved_policy(config.model_copy(update={"alpha": alpha}))
    whole = moved_policy(config)
    assert loss_of(policy, rows).item() == loss_of(whole, as_users(rows, [2, 0, 1])).item()


def test_before_the_first_step_the_margin_is_the_soft_prompts_alone(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison]
) -> None:
    """Without user tokens a fresh policy is the reference: margin 0, loss log 2."""
    from prlhf.model.checkpoint import build_policy

    rows = [replace(row, user_text="") for row in rows]
    policy = build_policy(make_config(tmp_path, user_model="uniform", user_tokens=0), ["ann"], {})
    assert loss_of(policy, rows).item() == pytest.approx(0.6931472, abs=1e-5)
