"""Users in the adapter: mixed rows are each user alone, trees are padded rows, and a folded gate is the gated model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS, PAD, TOKENS, policy_of
from torch import Tensor

from prlhf.config import TrainConfig
from prlhf.errors import PrlhfError
from prlhf.generate.decode_loop import DecodeLoop, DecodeRow, serves
from prlhf.model.checkpoint import Policy
from prlhf.model.gates import Gates, a_modules, folded
from prlhf.model.personalized import decoder_layers
from prlhf.model.prefix_tree import pack
from prlhf.model.readings import Reading, padded
from prlhf.model.user_models import build_user_model, size_of

# two users and the generic one at two prompts that begin alike; every prompt has two responses
READINGS = [
    Reading(user, before, response)
    for user in (1, 0, 3)
    for before in ((5, 6, 7, 8, 9), (5, 6, 7, 30))
    for response in ((20, 21, 1), (20, 22, 23, 1))
]


# OPT's MLP reads tokens apart from their rows
LAYERS = {"opt": {"lora_targets": "q_proj,v_proj"}}


def gated(name: str = "llama", **options: Any) -> Policy:
    return policy_of(name, **{"user_in": "adapter", "lora_r": 4} | LAYERS.get(name, {}) | options)


def plain(name: str = "llama") -> Policy:
    """The same adapter without users."""
    return gated(name, user_in="prompt", user_model="uniform", user_tokens=0)


@pytest.fixture(scope="module", params=[*sorted(CONFIGS)])
def policy(request: pytest.FixtureRequest) -> Policy:
    return gated(request.param)


def values(policy: Policy, readings: list[Reading], trees: bool = False) -> Tensor:
    tokens = policy.model.users.tokens
    with torch.no_grad():
        return policy.model(pack(readings, tokens, 1) if trees else padded(readings, tokens, PAD))  # type: ignore[no-any-return]


def alone(policy: Policy, readings: list[Reading] = READINGS) -> Tensor:
    return torch.cat([values(policy, [reading]) for reading in readings])


def test_mixed_rows_are_each_user_alone(policy: Policy) -> None:
    expected = alone(policy)
    torch.testing.assert_close(values(policy, READINGS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(values(policy, READINGS, trees=True), expected, rtol=0, atol=1e-4)
    users = expected.view(3, 4)
    assert (users[0] - users[1]).abs().min() > 1e-3  # and users differ, or any gate would do
    assert (users[0] - users[2]).abs().min() > 1e-3


@pytest.mark.parametrize("options", [{"gates": "block"}, {"user_model": "cluster", "k": 2}, {"user_in": "both"}])
def test_other_gates_too(options: dict[str, Any]) -> None:
    policy = gated(**options)
    expected = alone(policy)
    torch.testing.assert_close(values(policy, READINGS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(values(policy, READINGS, trees=True), expected, rtol=0, atol=1e-5)
    users = expected.view(3, 4)
    assert (users[0] - users[1]).abs().min() > 1e-3


def test_gradients_of_trees_are_those_of_padded_rows() -> None:
    policy = gated(gates="block")

    def gradients(trees: bool) -> dict[str, Tensor]:
        policy.model.zero_grad()
        policy.model(pack(READINGS, 0, 1) if trees else padded(READINGS, 0, PAD)).sum().backward()
        return {n: p.grad.clone().to_dense() for n, p in policy.model.named_parameters() if p.grad is not None}

    padded_rows, trees = gradients(False), gradients(True)
    assert padded_rows.keys() == trees.keys()
    assert "users.gates.offsets.weight" in trees
    rows = trees["users.gates.offsets.weight"].abs().sum(1)
    assert rows[1] == 0  # user 2 reads nothing here
    assert (rows[[0, 2]] > 0).all()
    for name, gradient in trees.items():
        rounding = 1e-5 * float(padded_rows[name].abs().max())  # of sums of numbers as large as these
        torch.testing.assert_close(gradient, padded_rows[name], rtol=0, atol=rounding)


def test_the_generic_users_gate_is_plain_lora(policy: Policy) -> None:
    generic = [reading._replace(user_index=0) for reading in READINGS]
    found = values(policy, generic)
    assert torch.equal(found, values(plain(policy.base.name), generic))


@pytest.mark.parametrize("gates", ["one", "block"])
def test_a_folded_gate_is_the_gated_model(gates: str) -> None:
    policy = gated(gates=gates)
    assert policy.model.users.gates is not None
    expected = values(policy, READINGS[:4])
    gate = 1 + policy.model.users.gates(torch.tensor([1]))[0].detach()
    assert gate.shape == ((2, 4) if gates == "block" else (1, 4))
    exported = plain()
    ours = folded(policy.model.lm, decoder_layers(policy.model.lm), gate)
    assert len(ours) == 2 * 7
    exported.model.lm.load_state_dict(ours, strict=False)
    torch.testing.assert_close(values(exported, READINGS[:4]), expected, rtol=1e-5, atol=1e-5)


def test_a_gate_multiplies_the_rank() -> None:
    """W x + (alpha / r) B diag(g) A x, on literal numbers."""
    policy = gated()
    name, module = next((n, m) for n, m in policy.model.lm.named_modules() if n.endswith("q_proj"))
    gates = policy.model.gates
    assert gates is not None
    x = torch.randn(2, 3, module.in_features)
    g = torch.tensor([[[1.0, 2, 3, 4]], [[0, -1, 0, 1]]])  # [N, 1, r]
    gates.set(g)
    with torch.no_grad():
        found = module(x)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        scale = policy.config.lora_alpha / 4
        for row in range(2):
            low = b @ torch.diag(g[row, 0]) @ a
            expected = x[row] @ module.base_layer.weight.T + scale * x[row] @ low.T
            torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)
    assert name


def test_each_block_has_its_own_gate() -> None:
    policy = gated(gates="block")
    gates = policy.model.gates
    assert gates is not None
    layers = decoder_layers(policy.model.lm)
    numbers = [number for number, _ in a_modules(policy.model.lm, layers)]
    assert numbers == [0] * 7 + [1] * 7
    gates.set(torch.tensor([[[1.0] * 4, [0.0] * 4]]))
    for number, module in a_modules(policy.model.lm, layers):
        out = module(torch.randn(1, 2, module.in_features))
        assert (out == 0).all() == (number == 1)


def test_gradient_checkpointing_computes_with_the_same_gates() -> None:
    policy = gated()
    policy.model.train()

    def gradient() -> Tensor:
        policy.model.zero_grad()
        policy.model(padded(READINGS, 0, PAD)).sum().backward()
        return policy.model.users.get_parameter("gates.offsets.weight").grad.to_dense().clone()  # type: ignore[union-attr]

    expected = gradient()
    policy.base.lm.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(), expected, rtol=1e-5, atol=1e-5)


def test_the_decode_loop_writes_as_each_user_alone() -> None:
    """Greedy: rows of several users that join and leave, against one row at a time."""
    policy = gated()
    assert serves(policy.model)
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    rows = [DecodeRow(ids, user, seed=0) for user in (0, 1, 3) for ids in prompts]

    def write(size: int, some: list[DecodeRow]) -> dict[Any, list[int]]:
        for row in some:
            row.written.clear()
        loop = DecodeLoop(policy.model, size, 6, lambda row: len(row.written) == 3 + len(row.ids) % 3)
        return {(row.user_index, tuple(row.ids)): list(row.written) for done in loop.run(some) for row in done}

    together = write(4, rows)
    assert together == {key: text for row in rows for key, text in write(1, [row]).items()}
    assert len({tuple(text) for (_, ids), text in together.items() if ids == tuple(prompts[0])}) == 3


def test_sizes_start_and_rates() -> None:
    config = TrainConfig(user_in="adapter", lora_r=4, gates="block", gate_scale=0.5)
    model = build_user_model(config, 500, torch.randn(9, 6), blocks=3)
    assert model.tokens == 0
    assert model.gates is not None
    assert model.size() == size_of(config, 500, 6, blocks=3) == (500 * 12, 12)
    assert torch.equal(model.gates(torch.tensor([0]))[0], torch.zeros(3, 4))
    rows = model.get_parameter("gates.offsets.weight")
    assert rows.std().item() == pytest.approx(0.5, rel=0.05)
    assert list(model.row_tables()) == ["gates.offsets.weight"]
    assert [rate for _, rate in model.gates.rates(config)] == [config.gate_lr]


def test_both_places_have_their_own_rates() -> None:
    model = build_user_model(TrainConfig(user_in="both", user_lr=0.1, gate_lr=0.3), 2, torch.randn(9, 6))
    assert model.gates is not None
    groups = model.rates(TrainConfig()) + model.gates.rates(TrainConfig())
    assert [rate for _, rate in groups] == [0.1, 0.3]
    assert {id(p) for some, _ in groups for p in some} == {id(p) for p in model.parameters()}
    assert sum(len(some) for some, _ in groups) == len(list(model.parameters()))
    assert model.tokens == 10 == TrainConfig().slots
    assert TrainConfig(user_in="adapter").slots == 0


def test_a_layer_that_mixes_rows_is_refused() -> None:
    policy = gated()
    gates = Gates(policy.model.lm, [])
    gates.set(torch.ones(1, 1, 4))
    _, module = next(a_modules(policy.model.lm, []))
    with pytest.raises(PrlhfError, match="reads tokens apart from their rows"):
        module(torch.randn(3, module.in_features))  # type: ignore[arg-type]
    with pytest.raises(PrlhfError, match="reads tokens apart from their rows"):
        values(gated("opt", lora_targets="all-linear"), READINGS)


def test_uniform_users_have_no_gates() -> None:
    model = build_user_model(TrainConfig(user_in="both", user_model="uniform"), 2, torch.randn(9, 6))
    assert model.gates is None
    assert TOKENS == 2


def test_full_fine_tuning_has_no_adapter_for_gates() -> None:
    with pytest.raises(PrlhfError, match="full_finetune = true leaves no adapter for user_in = adapter"):
        TrainConfig(full_finetune=True, user_in="adapter")
