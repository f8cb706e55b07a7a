"""The reward of a row is read off its last real token, whatever pads it, and a saved reward model is the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import (
    Trained,
    build_policy,
    build_reward_model,
    kind_of,
    load_policy,
    load_reward_model,
    save_policy,
)
from prlhf.model.personalized import RewardModel, last_real, trunk_of
from prlhf.model.readings import Rows, pad_rows
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


def moved(config: Any) -> Trained[RewardModel]:
    """A reward model whose adapter, users and head have left their start."""
    trained = build_reward_model(config, ["ann", "bob", "cat"], {})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trained.model.eval()
    return trained


def rewards(model: nn.Module, rows: Rows) -> Tensor:
    with torch.no_grad():
        return model(rows)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def shared_model(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return moved(make_config(tmp_path_factory.mktemp("unused"), objective="rm")).model


tokens = st.lists(st.integers(5, 350), min_size=1, max_size=9)
conversations = st.lists(st.tuples(tokens, st.lists(st.integers(5, 350), max_size=9), st.integers(0, 3)), min_size=1)


@settings(max_examples=25, deadline=None)
@given(conversations.map(lambda found: found[:5]), st.integers(0, 3))
def test_a_padded_batch_is_its_rows_one_by_one(
    shared_model: RewardModel, rows: list[tuple[list[int], list[int], int]], pad: int
) -> None:
    """Also where the response is empty, and where the padding's id stands for a word of the response."""
    together = rewards(
        shared_model, pad_rows([p for p, _, _ in rows], [r for _, r, _ in rows], [u for *_, u in rows], 2, pad)
    )
    alone = [rewards(shared_model, pad_rows([p], [r], [u], 2, pad)) for p, r, u in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_the_reward_is_the_head_on_the_last_hidden_state(shared_model: RewardModel) -> None:
    """Put together by hand: no padding, no mask; the user's two vectors in front."""
    ids = [7, 8, 9, 10, 11]
    with torch.no_grad():
        words = shared_model.lm.get_input_embeddings()(torch.tensor([ids]))
        embeds = torch.cat([shared_model.users(torch.tensor([3])), words], 1)
        hidden = shared_model.lm(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1]
        expected = (hidden[0, -1] * shared_model.head.weight[0]).sum()
    rows = pad_rows([[7, 8], [5] * 9], [[9, 10, 11], [6] * 8], [3, 1], 2, 0)
    assert rewards(shared_model, rows)[0].item() == pytest.approx(expected.item(), abs=1e-5)
    assert abs(expected.item()) > 1e-2


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=6))
def test_the_last_real_column(rows: list[tuple[int, int]]) -> None:
    """(padding before, real tokens), padded on the right to the longest."""
    width = max(before + real for before, real in rows)
    mask = torch.tensor([[0] * b + [1] * r + [0] * (width - b - r) for b, r in rows])
    assert last_real(mask).tolist() == [before + real - 1 for before, real in rows]


def test_users_and_responses_matter(shared_model: RewardModel) -> None:
    rows = pad_rows([[7, 8]] * 3, [[9], [9], [10]], [0, 2, 2], 2, 0)
    generic, bob, other = rewards(shared_model, rows).tolist()
    assert abs(generic - bob) > 1e-4
    assert abs(bob - other) > 1e-4


def test_its_head_starts_small_and_alike_for_every_seed(tmp_path: Path, make_config: MakeConfig) -> None:
    heads = [build_reward_model(make_config(tmp_path, objective="rm", seed=s), ["ann"], {}).model.head for s in (3, 4)]
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.std().item() == pytest.approx(33**-0.5, rel=0.3)


def test_no_logits_are_computed(shared_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("the vocabulary head was called")

    head = shared_model.lm.get_output_embeddings()
    monkeypatch.setattr(head, "forward", refuse)
    rewards(shared_model, pad_rows([[7, 8]], [[9]], [1], 2, 0))


def architectures() -> dict[str, Any]:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen2Config

    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"max_position_embeddings": 64, "pad_token_id": 0}
    return {
        "llama": LlamaConfig(**small, intermediate_size=16),
        "qwen2": Qwen2Config(**small, intermediate_size=16, num_key_value_heads=1),
        "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        "gpt_neox": GPTNeoXConfig(**small, intermediate_size=16),
        # its embeddings are narrower than its layers, and so is what its head reads
        "opt": OPTConfig(**small, ffn_dim=16, word_embed_proj_dim=8),
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("full", [False, True])
def test_other_architectures(tmp_path: Path, make_config: MakeConfig, name: str, full: bool) -> None:
    from transformers import AutoModelForCausalLM

    from prlhf.model.base import Base
    from prlhf.model.checkpoint import assemble

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(architectures()[name], attn_implementation="eager").eval()
    for parameter in lm.parameters():
        parameter.requires_grad_(False)
    config = make_config(tmp_path, objective="rm", full_finetune=full)
    model = assemble(Base("x", lm, None, ""), config, ["ann"], {}, RewardModel).model
    nn.init.normal_(model.head.weight)
    model.eval()
    prompts, responses = [[5, 6], [7, 8, 9, 5, 6], [6]], [[10, 11, 12], [13], []]
    together = model(pad_rows(prompts, responses, [0, 1, 1], 2, 0))
    alone = [model(pad_rows([p], [r], [u], 2, 0)) for p, r, u in zip(prompts, responses, [0, 1, 1], strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    together.sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # all that is trained takes part, or DDP would wait for it


def test_a_base_without_a_trunk_is_refused(tiny_base: Path) -> None:
    from prlhf.model.base import load_base

    lm = load_base(str(tiny_base)).lm
    lm.base_model_prefix = "nothing"
    with pytest.raises(PrlhfError, match="LlamaForCausalLM does not separate its trunk from its vocabulary head"):
        trunk_of(lm)


# ---- on disk ----


@pytest.mark.parametrize(
    "options",
    [
        {"user_model": "uniform", "user_tokens": 0},
        {"user_model": "individual", "lora_dropout": 0.3},
        {"user_model": "cluster", "full_finetune": True},
    ],
)
def test_saved_and_loaded_is_the_same(tmp_path: Path, make_config: MakeConfig, options: dict[str, Any]) -> None:
    trained = moved(make_config(tmp_path / "run", objective="rm", **options))
    save_policy(trained, tmp_path)
    loaded = load_reward_model(tmp_path, "cpu", "fp32")
    rows = pad_rows([[7, 8], [5]], [[9], [6, 7]], [2, 0], trained.config.user_tokens, 0)
    assert torch.equal(rewards(loaded.model, rows), rewards(trained.model, rows))
    assert loaded.config == trained.config.model_copy(update={"out": None})
    assert not loaded.model.training
    assert json.loads((tmp_path / "prlhf.json").read_text())["kind"] == "reward model"
    assert load_file(tmp_path / "reward_head.safetensors")["weight"].shape == (1, 32)


def test_bf16_keeps_the_head_and_the_users_in_fp32(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path / "run", objective="rm", precision="bf16", max_steps=2, gradient_checkpointing=True)
    train(config)
    model = load_reward_model(tmp_path / "run", "cpu", "bf16").model
    assert model.lm.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.head.weight.dtype == model.users.generic.dtype == torch.float32
    assert model.head.weight.abs().max() > 0
    assert rewards(model, pad_rows([[7, 8]], [[9]], [1], 2, 0)).dtype == torch.float32


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    train(make_config(folder, objective="rm"))
    return folder


def test_the_wrong_kind_is_refused_both_ways(reward_run: Path, trained: Path) -> None:
    assert (kind_of(reward_run), kind_of(trained)) == ("reward model", "policy")
    with pytest.raises(
        PrlhfError, match=f"{reward_run} is a reward model, which does not write; give the run of a pol"
    ):
        load_policy(reward_run, "cpu")
    with pytest.raises(PrlhfError, match=f"{trained} is a policy, not a reward model; give the run of a reward model"):
        load_reward_model(trained, "cpu")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:], lambda raw: b"", None])
def test_a_damaged_head(reward_run: Path, tmp_path: Path, damage: Callable[[bytes], bytes] | None) -> None:
    copy = Path(shutil.copytree(reward_run, tmp_path / "run"))
    head = copy / "model/reward_head.safetensors"
    if damage is None:
        head.unlink()
    else:
        head.write_bytes(damage(head.read_bytes()))
    with pytest.raises(PrlhfError, match="changed or cut short" if damage else "lacks reward_head.safetensors"):
        load_reward_model(copy, "cpu")


def test_a_kind_of_a_later_version(reward_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reward_run, tmp_path / "run"))
    about = json.loads((copy / "model/prlhf.json").read_text())
    (copy / "model/prlhf.json").write_text(json.dumps(about | {"kind": "value model"}))
    with pytest.raises(PrlhfError, match=r"prlhf\.json is damaged"):
        kind_of(copy)


def test_a_policy_of_the_first_version_has_no_kind(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    about = json.loads((copy / "model/prlhf.json").read_text())
    del about["kind"]
    (copy / "model/prlhf.json").write_text(json.dumps(about))
    assert load_policy(copy, "cpu").user_ids == ["ann", "bob", "cat"]


def test_the_adapter_and_users_start_as_a_policys(tmp_path: Path, make_config: MakeConfig) -> None:
    """The same seed, so that P-RM and P-DPO start from the same users."""
    reward = build_reward_model(make_config(tmp_path, objective="rm"), ["ann"], {}).model
    policy = build_policy(make_config(tmp_path), ["ann"], {}).model
    mine, theirs = dict(reward.named_parameters()), dict(policy.named_parameters())
    assert set(mine) - set(theirs) == {"head.weight"}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
