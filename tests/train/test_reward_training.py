"""Training a reward model: which term depends on what, what a run leaves, and that it learns opposite tastes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed, StopAt
from losses import as_users, loop_of, loss_of, moved_policy
from safetensors.torch import load_file

from prlhf.dataset import Comparison, Prepared, User, prompt_id, read_prepared, write_prepared
from prlhf.model.checkpoint import build_reward_model, load_reward_model
from prlhf.model.readings import padded, readings_of
from prlhf.train import metrics
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name in ("adapter_model", "user_model", "reward_head"):
        found |= {f"{name}.{key}": value for key, value in load_file(run / f"model/{name}.safetensors").items()}
    return found


@pytest.fixture
def rows(prepared: Path) -> list[Comparison]:
    return read_prepared(prepared).train[:3]  # by ann, bob and cat


@pytest.mark.parametrize("kind", ["individual", "cluster"])
@pytest.mark.parametrize(("alpha", "depends"), [(0.0, False), (0.5, True), (1.0, True)])
def test_only_the_users_term_sees_the_users_id(
    tmp_path: Path, make_config: MakeConfig, rows: list[Comparison], kind: str, alpha: float, depends: bool
) -> None:
    model = moved_policy(make_config(tmp_path, objective="rm", user_model=kind, alpha=alpha))
    own, swapped = loss_of(model, rows).item(), loss_of(model, as_users(rows, [3, 1, 2])).item()
    assert (abs(own - swapped) > 1e-5) is depends


def test_the_loss_is_the_mix_of_both_readings(tmp_path: Path, make_config: MakeConfig, rows: list[Comparison]) -> None:
    """alpha 0.3, put together from rewards taken one reading at a time."""
    model = moved_policy(make_config(tmp_path, objective="rm", alpha=0.3))
    loop = loop_of(model, rows)
    expected = 0.0
    for weight, users in ((0.3, [1, 2, 3]), (0.7, [0, 0, 0])):
        layout = padded(readings_of(loop.train_set.encoded, users), 2, model.tokenizer.pad_token_id)
        chosen, rejected = model.model(layout).view(2, -1)
        expected += weight * -torch.sigmoid(chosen - rejected).log().mean().item()
    assert loss_of(model, rows).item() == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(0.6931472, abs=1e-3)


def test_one_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, make_config: MakeConfig) -> None:
    runs = {"1x8": {"batch_size": 8}, "8x1": {"batch_size": 1, "accumulation": 8}}
    for name, options in runs.items():
        train(make_config(tmp_path / name, objective="rm", max_steps=4, lr=1e-3, user_lr=1e-2, **options))
    whole, parts = ([r for r in metrics.read(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in runs)
    for a, b in zip(whole, parts, strict=True):
        assert a | {"epoch": 0} == pytest.approx(b | {"epoch": 0}, abs=1e-5)  # epochs are counted in batches
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.01
    first, second = weights(tmp_path / "1x8"), weights(tmp_path / "8x1")
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_training_moves_adapter_users_and_head_and_nothing_else(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, full: bool
) -> None:
    model = moved_policy(make_config(tmp_path, objective="rm", max_steps=2, full_finetune=full))
    loop = loop_of(model, read_prepared(prepared).train[:6])
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    loop.run()
    moved = {name for name, p in model.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n, p in model.model.named_parameters() if p.requires_grad}
    assert "head.weight" in moved
    assert any(("lora_" in name) is not full for name in moved)


def test_the_head_learns_at_the_users_rate_without_decay(
    tmp_path: Path, make_config: MakeConfig, prepared: Path
) -> None:
    model = moved_policy(make_config(tmp_path, objective="rm", weight_decay=0.1))
    adapter, *own = loop_of(model, read_prepared(prepared).train).optimizer.param_groups
    assert (adapter["lr"], adapter["weight_decay"]) == (1e-2, 0.1)
    assert {(group["lr"], group["weight_decay"]) for group in own} == {(5e-2, 0.0)}
    parameters = [*model.model.users.parameters(), *model.model.head.parameters()]
    assert {id(p) for group in own for p in group["params"]} == {id(p) for p in parameters}


# ---- a run ----


OPTIONS: dict[str, Any] = {
    "objective": "rm", "accumulation": 2, "max_steps": 8, "save_every": 3, "eval_every": 2, "lora_dropout": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reward"
    train(make_config(folder, **OPTIONS))
    return folder


def test_resumed_is_uninterrupted_to_the_last_bit(tmp_path: Path, make_config: MakeConfig, reward_run: Path) -> None:
    """Killed after the first checkpoint, in which the head has moved already."""
    config = make_config(tmp_path / "run", **OPTIONS)
    with pytest.raises(Killed):
        train(config, progress=StopAt(4))
    saved = load_file(tmp_path / "run/checkpoints/checkpoint-3/reward_head.safetensors")["weight"]
    assert not torch.equal(saved, build_reward_model(config, ["ann"], {}).model.head.weight)
    train(config, resume=True)
    assert metrics.read(tmp_path / "run/metrics.jsonl") == metrics.read(reward_run / "metrics.jsonl")
    for name in ("adapter_model", "user_model", "reward_head"):
        mine, theirs = (run / f"model/{name}.safetensors" for run in (tmp_path / "run", reward_run))
        assert mine.read_bytes() == theirs.read_bytes()


def test_what_a_run_says(reward_run: Path) -> None:
    results = json.loads((reward_run / "results.json").read_text())
    assert results["objective"] == "rm"
    assert {"step", "loss", "accuracy", "margin"} <= set(metrics.read(reward_run / "metrics.jsonl")[0])
    assert "nll_chosen" not in metrics.read(reward_run / "metrics.jsonl")[0]
    by_user = results["eval"]["accuracy_by_user"]
    assert results["eval"]["accuracy_unseen"] == by_user["zoe"]
    assert results["eval"]["accuracy_seen"] == pytest.approx(sum(by_user[u] for u in ("ann", "bob", "cat")) / 3)
    card = (reward_run / "model/README.md").read_text()
    assert "# A personalized reward model" in card
    assert "beta" not in card
    assert "| reward accuracy |" in card


def test_a_run_is_read_back_as_it_was(reward_run: Path, prepared: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(reward_run, tmp_path / "run"))
    again = loop_of(load_reward_model(copy, "cpu", "fp32"), read_prepared(prepared).eval).evaluate()
    expected = json.loads((reward_run / "results.json").read_text())["eval"]
    assert again["margin_by_user"] == pytest.approx(expected["margin_by_user"], abs=1e-6)
    assert again["margin_mean"] != 0


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    for name, on in (("off", False), ("on", True)):
        train(make_config(tmp_path / name, objective="rm", max_steps=2, gradient_checkpointing=on))
    on_ = weights(tmp_path / "on")
    for name, value in weights(tmp_path / "off").items():
        torch.testing.assert_close(value, on_[name], rtol=0, atol=1e-5)


def test_a_reward_run_has_a_folder_of_its_own(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path, dataset="demo")
    names = [config.model_copy(update={"out": None, "objective": o}).folder.name for o in ("dpo", "rm")]
    assert names == ["demo-individual", "demo-rm-individual"]


# ---- what it learns ----


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two users who choose oppositely between two words, on prompts of which the held-out ones are new."""
    folder = tmp_path_factory.mktemp("data") / "opposite"
    words = ["boats", "cars", "lamps", "tables", "rings", "doors", "clocks", "vases"]

    def row(i: int, user: int) -> Comparison:
        prompt = f"my {words[i % 8]} {words[i // 8]}:"
        likes, other = (" yes.", " no.") if user == 1 else (" no.", " yes.")
        return Comparison(f"{i}-{user}", prompt, likes, other, f"u{user}", user, "", prompt_id(prompt), True)

    rows = [row(i, user) for i in range(32) for user in (1, 2)]
    users = [User(f"u{user}", user, "", "", 24, 8, True) for user in (1, 2)]
    write_prepared(folder, Prepared(rows[:48], rows[48:], users, {"dataset": "opposite"}))
    return folder


def test_opposite_tastes_are_learned_by_users_alone(tmp_path: Path, make_config: MakeConfig, opposite: Path) -> None:
    """Lemma 3.2's case: every pair is rated by both users, so no vanilla reward model is right more than half of it."""
    options = {"objective": "rm", "dataset": str(opposite), "max_steps": 60, "batch_size": 8, "save_every": 100}
    options |= {"user_lr": 1e-2, "lora_r": 8}
    personal = train(make_config(tmp_path / "p", **options))["eval"]
    vanilla = train(make_config(tmp_path / "v", user_model="uniform", user_tokens=0, **options))["eval"]
    assert personal["accuracy_worst_tenth"] > 0.8  # 7 of 8, or all
    assert vanilla["accuracy_macro"] == 0.5
    assert personal["accuracy_generic"] == 0.5
