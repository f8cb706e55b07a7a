"""Every user model against literal parameters, and who is reached by whose gradient."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.extensions import USER_MODELS
from prlhf.model import user_models
from prlhf.model.user_models import UserModel, build_user_model, size_of
from prlhf.model.user_rows import SparseRows

KINDS = ("uniform", "individual", "cluster")
VOCABULARY = torch.arange(20.0).reshape(5, 4)


def build(kind: str, users: int = 3, tokens: int = 2, vocabulary: Tensor = VOCABULARY, **options: Any) -> UserModel:
    config = TrainConfig.saved({"user_model": kind, "user_tokens": tokens, "k": 2} | options)
    return build_user_model(config, users, vocabulary)


def fill(model: UserModel, **parameters: list[Any]) -> UserModel:
    with torch.no_grad():
        for name, values in parameters.items():
            model.get_parameter(name).copy_(torch.tensor(values))
    return model


def test_uniform_is_the_same_for_everyone() -> None:
    model = fill(build("uniform"), shared=[[1.0, 2, 3, 4], [5, 6, 7, 8]])
    out = model(torch.tensor([0, 3, 1]))
    assert out.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]]] * 3


def test_individual_is_the_generic_user_plus_an_offset() -> None:
    """e_0 for index 0, e_0 + o_i for i >= 1 (Example 2)."""
    model = build("individual", users=2, vocabulary=torch.zeros(3, 2))
    fill(model, **{"generic": [[1.0, 2], [3, 4]], "offsets.weight": [[10.0, 20, 30, 40], [-1, -2, -3, -4]]})
    assert model(torch.tensor([2, 0, 1, 0])).tolist() == [
        [[0, 0], [0, 0]],
        [[1, 2], [3, 4]],
        [[11, 22], [33, 44]],
        [[1, 2], [3, 4]],
    ]


@pytest.mark.parametrize(
    ("kind", "user_weights", "expected"),
    [
        # V_1 = [[1, 2]], V_2 = [[10, 20]]; linear: w = (2, -1) and (0.5, 0.5)
        ("linear", [[2.0, -1.0], [0.5, 0.5]], [[[-8.0, -16.0]], [[5.5, 11.0]]]),
        # softmax (log 3, 0) = (3/4, 1/4): 0.75 * 1 + 0.25 * 10 = 3.25; softmax (7, 7) = (1/2, 1/2)
        ("softmax", [[1.0986123, 0.0], [7.0, 7.0]], [[[3.25, 6.5]], [[5.5, 11.0]]]),
    ],
)
def test_cluster_is_a_weighted_sum_of_centers(kind: str, user_weights: list[Any], expected: list[Any]) -> None:
    """V . w_i, with weights of its own for the generic user (Example 3)."""
    model = build("cluster", users=1, tokens=1, vocabulary=torch.zeros(3, 2), cluster_weights=kind)
    fill(model, **{"centers": [[[1.0, 2]], [[10.0, 20]]], "weights.weight": user_weights})
    torch.testing.assert_close(model(torch.tensor([0, 1])), torch.tensor(expected))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.sampled_from(KINDS), st.integers(1, 4))
def test_a_batch_is_its_users_one_by_one(users: list[int], kind: str, tokens: int) -> None:
    model = build(kind, users=6, tokens=tokens, user_init="random")
    out = model(torch.tensor(users))
    assert out.shape == (len(users), tokens, 4)
    for user, row in zip(users, out, strict=True):
        torch.testing.assert_close(row, model(torch.tensor([user]))[0], rtol=0, atol=1e-6)


def test_no_user_tokens_is_an_empty_prefix() -> None:
    assert build("uniform", tokens=0)(torch.tensor([0, 2])).shape == (2, 0, 4)


def test_offsets_learn_from_their_own_user_only() -> None:
    model = build("individual", users=4, user_init="random")
    model(torch.tensor([2, 0, 4, 2])).sum().backward()
    offsets = model.get_parameter("offsets.weight").grad
    assert offsets is not None
    assert offsets.to_dense().sum(1).tolist() == [0, 16, 0, 8]  # two rows of user 2, one of user 4, T_u * d = 8 each
    generic = model.get_parameter("generic").grad
    assert generic is not None
    assert torch.equal(generic, torch.full((2, 4), 4.0))  # every row, the generic user's included


def test_the_generic_user_moves_no_offset() -> None:
    """Index 0 has no row of the table; it must not learn in another's, nor count as a step of theirs."""
    model = build("individual", users=2, user_init="random")
    model(torch.tensor([0, 0])).square().sum().backward()
    offsets = model.get_parameter("offsets.weight").grad
    assert offsets is not None
    assert offsets.coalesce().indices().tolist() == [[]]


@pytest.mark.parametrize("weights", ["softmax", "linear"])
def test_cluster_weights_learn_from_their_own_user_only(weights: str) -> None:
    model = build("cluster", users=4, user_init="random", cluster_weights=weights)
    model(torch.tensor([3, 0, 3])).square().sum().backward()
    grad = model.get_parameter("weights.weight").grad
    assert grad is not None
    assert grad.coalesce().indices().tolist() == [[0, 3]]
    assert (grad.to_dense() != 0).any(1).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["zero", "vocabulary", "random"])
def test_the_start_depends_on_the_seed(kind: str, init: str) -> None:
    vocabulary = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    before = torch.random.get_rng_state()
    first = build(kind, vocabulary=vocabulary, user_init=init, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's random numbers are spent
    torch.rand(1)  # nor do they matter
    again, other = (build(kind, vocabulary=vocabulary, user_init=init, seed=seed) for seed in (1, 2))
    users = torch.tensor([0, 1, 2, 3])
    assert torch.equal(first(users), again(users))
    assert not torch.equal(first(users), other(users))


@pytest.mark.parametrize(
    ("kind", "options"), [("individual", {}), ("cluster", {}), ("cluster", {"cluster_weights": "linear"})]
)
def test_zero_starts_everyone_at_the_generic_user(kind: str, options: dict[str, Any]) -> None:
    out = build(kind, user_init="zero", **options)(torch.tensor([0, 1, 2, 3]))
    assert torch.equal(out, out[:1].expand_as(out))
    assert out.any()


def test_individual_users_start_from_vocabulary_rows() -> None:
    vocabulary = torch.eye(4)
    model = build("individual", vocabulary=vocabulary, user_init="vocabulary")
    assert all(row in vocabulary.tolist() for row in model.get_parameter("generic").tolist())
    rows = model.get_parameter("offsets.weight").reshape(-1, 4).tolist()
    assert all(row in vocabulary.tolist() for row in rows)
    assert len({tuple(row) for row in rows}) > 1


def test_random_has_the_vocabularys_spread() -> None:
    vocabulary = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * 0.02
    model = build("individual", users=500, vocabulary=vocabulary, user_init="random")
    rows = model.get_parameter("offsets.weight")
    assert rows.std().item() == pytest.approx(0.02, rel=0.1)
    known = {tuple(row) for row in vocabulary.tolist()}
    assert not any(tuple(row) in known for row in rows.reshape(-1, 4).tolist())  # drawn, not copied


def test_a_users_cluster_weights_have_a_rate_of_their_own() -> None:
    config = TrainConfig(user_model="cluster", k=2, user_tokens=1, user_lr=0.1, cluster_lr=0.3)
    model = build_user_model(config, 2, VOCABULARY)
    rates = {id(parameter): rate for group, rate in model.rates(config) for parameter in group}
    assert rates == {id(model.get_parameter("centers")): 0.1, id(model.get_parameter("weights.weight")): 0.3}


@pytest.mark.parametrize("init", ["zero", "vocabulary", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_more_users_than_the_vocabulary_has_rows(kind: str, init: str) -> None:
    """The released code draws without replacement and stops at vocab / T_u users."""
    out = build(kind, users=40, user_init=init)(torch.tensor([0, 40]))
    assert out.shape == (2, 2, 4)
    assert out.isfinite().all()


def test_parameters_are_fp32_whatever_the_base() -> None:
    for kind in KINDS:
        model = build(kind, vocabulary=VOCABULARY.to(torch.bfloat16))
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_an_unknown_user_model_is_refused() -> None:
    config = TrainConfig().model_copy(update={"user_model": "individuall"})
    with pytest.raises(PrlhfError, match="user model 'individuall' is not known; did you mean 'individual'"):
        build_user_model(config, 1, VOCABULARY)


# ---- tables ----


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_a_million_users_start_without_memory(kind: str) -> None:
    """From zeros that nobody has written; 5 GB where torch had written them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = build(kind, users=1_000_000, tokens=10, vocabulary=torch.randn(8, 128), user_init="zero", k=1280)
    users = torch.tensor([0, 1, 1_000_000])
    out = model(users)
    assert torch.equal(out, out[:1].expand_as(out))
    out.sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize("kind", ["individual", "cluster"])
@pytest.mark.parametrize("held", [[], [2], [6, 3]])
def test_a_model_of_some_users_has_the_vectors_of_the_whole(kind: str, held: list[int]) -> None:
    whole, part = build(kind, users=6, user_init="random"), build(kind, users=0, user_init="random")
    table = next(module for module in part.modules() if isinstance(module, SparseRows))
    state = whole.state_dict()
    rows = table.select(held)
    name = next(name for name in state if name.endswith(".weight"))
    part.load_state_dict(state | {name: state[name][rows]})
    users = torch.tensor([0, *held, 0])
    assert torch.equal(part(users), whole(users))
    for other in (1, 4, 5):
        with pytest.raises(ValueError, match="were not loaded"):
            part(torch.tensor([0, other]))


@pytest.mark.parametrize("init", ["vocabulary", "random"])
def test_drawn_in_parts_is_drawn_at_once(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    whole = build("individual", users=40, vocabulary=vocabulary, user_init=init)
    monkeypatch.setattr(user_models, "DRAWN_AT_ONCE", 7)
    parts = build("individual", users=40, vocabulary=vocabulary, user_init=init)
    assert torch.equal(whole.get_parameter("offsets.weight"), parts.get_parameter("offsets.weight"))


# ---- what the rest of the code asks of a user model ----


@pytest.mark.parametrize("kind", sorted(USER_MODELS))
def test_the_size_is_that_of_a_built_model(kind: str) -> None:
    config = TrainConfig(user_model=kind, user_tokens=3, **({"k": 5} if kind == "cluster" else {}))
    built = build_user_model(config, 4, torch.randn(9, 6))
    found = size_of(config, 4, 6)
    assert found == built.size()
    assert found.total == sum(parameter.numel() for parameter in built.parameters())
    assert found.per_user == {"uniform": 0, "individual": 18, "cluster": 5}[kind]


def test_tables_of_rows_have_the_names_of_their_weights() -> None:
    for kind, names in (("uniform", []), ("individual", ["offsets.weight"]), ("cluster", ["weights.weight"])):
        model = build_user_model(TrainConfig(user_model=kind), 2, torch.randn(9, 6))
        assert list(model.row_tables()) == names
        assert set(names) <= set(model.state_dict())


def test_only_uniform_is_not_personal() -> None:
    assert {name for name, kind in USER_MODELS.items() if not kind.personal} == {"uniform"}


def test_data_that_leave_little_to_learn_are_warned_about() -> None:
    config = TrainConfig(user_model="cluster", k=3)
    assert [len(USER_MODELS[kind].warnings(config, 1)) for kind in ("uniform", "individual", "cluster")] == [0, 1, 2]
    assert [len(USER_MODELS[kind].warnings(config, 2)) for kind in ("uniform", "individual", "cluster")] == [0, 0, 1]
    assert not any(kind.warnings(config, 3) for kind in USER_MODELS.values())
