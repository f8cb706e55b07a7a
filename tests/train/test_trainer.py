"""The loop: accumulation, parameter groups, what a run leaves behind, and what it must not touch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from losses import loop_of, moved_policy, numbers
from safetensors.torch import load_file

from prlhf.dataset import Prepared, read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import load_policy
from prlhf.recipes import load_recipe
from prlhf.train import metrics
from prlhf.train.loop import Loop
from prlhf.train.run import train

MakeConfig = Callable[..., Any]


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "model/adapter_model.safetensors") | load_file(run / "model/user_model.safetensors")


def test_one_batch_of_eight_is_eight_batches_of_one(tmp_path: Path, make_config: MakeConfig) -> None:
    """12 comparisons: every second step has four, so the last, shorter accumulation is averaged rightly too.

    The rate is a tenth of the fixture's: Adam turns a gradient as small as rounding into a step of up to that rate.
    """
    runs = {"1x8": {"batch_size": 8}, "8x1": {"batch_size": 1, "accumulation": 8}}
    for name, options in runs.items():
        train(make_config(tmp_path / name, max_steps=4, nll=0.1, lr=1e-3, user_lr=5e-3, **options))
    whole, parts = ([r for r in metrics.read(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in runs)
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    for a, b in zip(whole, parts, strict=True):
        assert a | {"epoch": 0} == pytest.approx(b | {"epoch": 0}, abs=1e-5)  # epochs are counted in batches
    assert whole[0]["loss"] != pytest.approx(whole[-1]["loss"], abs=1e-3)
    first, second = weights(tmp_path / "1x8"), weights(tmp_path / "8x1")
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_users_have_a_learning_rate_of_their_own_and_no_decay(
    tmp_path: Path, make_config: MakeConfig, prepared: Path, kind: str
) -> None:
    own = {"cluster_lr": 0.3} if kind == "cluster" else {}
    policy = moved_policy(make_config(tmp_path, user_model=kind, weight_decay=0.1, **own))
    loop = loop_of(policy, read_prepared(prepared).train)
    adapter, *users = loop.optimizer.param_groups
    assert (adapter["lr"], adapter["weight_decay"]) == (1e-2, 0.1)
    assert [group["lr"] for group in users] == ([5e-2, 0.3] if kind == "cluster" else [5e-2])
    assert {group["weight_decay"] for group in users} == {0.0}
    assert {id(p) for group in users for p in group["params"]} == {id(p) for p in policy.model.users.parameters()}
    assert {id(p) for p in adapter["params"]} == {id(p) for p in policy.model.lm.parameters() if p.requires_grad}


def test_the_schedule_moves_both_learning_rates(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    policy = moved_policy(make_config(tmp_path, schedule="linear", warmup_steps=2, max_steps=3))
    loop = loop_of(policy, read_prepared(prepared).train)
    loop.run()
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.0, 0.0]


def test_training_moves_adapter_and_users_and_nothing_else(
    tmp_path: Path, make_config: MakeConfig, prepared: Path
) -> None:
    policy = moved_policy(make_config(tmp_path, max_steps=2, weight_decay=0.1))
    rows = read_prepared(prepared).train[:6]
    loop = loop_of(policy, rows)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    reference = loop.objective.reference.log_probs(loop.train_set.encoded)
    loop.run()
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {n for n, p in policy.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("users.") for name in moved)
    again = loop_of(policy, rows).objective.reference.log_probs(loop.train_set.encoded)
    assert torch.equal(reference, again)


def test_a_run_learns_its_training_data(tmp_path: Path, make_config: MakeConfig) -> None:
    """cat against ann and bob on the same kind of pairs: both sides are learned, which one ranking could not do."""
    train(make_config(tmp_path / "r", max_steps=40, batch_size=6, user_text=False, save_every=100))
    last = [r for r in metrics.read(tmp_path / "r/metrics.jsonl") if "loss" in r][-4:]
    assert sum(row["accuracy"] for row in last) / 4 > 0.9


def test_metrics_of_a_run(tmp_path: Path, make_config: MakeConfig) -> None:
    results = train(make_config(tmp_path / "r", eval_every=2))
    rows = metrics.read(tmp_path / "r/metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert set(steps[0]) == {
        "step", "loss", "accuracy", "margin", "nll_chosen", "log_ratio_chosen", "log_ratio_rejected", "grad_norm",
        "learning_rate", "epoch",
    }  # fmt: skip
    for row in steps:  # the margin is beta times the difference of the log-ratios
        assert row["margin"] == pytest.approx(0.1 * (row["log_ratio_chosen"] - row["log_ratio_rejected"]), abs=1e-5)
    assert [row["step"] for row in evaluations] == [2, 4, 6]
    assert len(steps) + len(evaluations) == len(rows)
    last = evaluations[-1]["eval"]
    assert set(last["accuracy_by_user"]) == {"ann", "bob", "cat", "zoe"}
    assert results["eval"] == last
    assert results["loss"] == pytest.approx(sum(row["loss"] for row in steps) / 6, abs=1e-6)
    assert steps[0]["learning_rate"] == 1e-2


def test_what_a_finished_run_holds(trained: Path) -> None:
    assert sorted(p.name for p in trained.iterdir()) == [
        "metrics.jsonl", "model", "prlhf.json", "recipe.yaml", "results.json",
    ]  # fmt: skip
    results = json.loads((trained / "results.json").read_text())
    assert (results["steps"], results["cut"]) == (6, {"prompts": 0, "histories": 0, "responses": 0})
    assert load_recipe(trained / "recipe.yaml")["train"]["user_model"] == "individual"
    assert "individual user model" in (trained / "model/README.md").read_text()


def test_a_finished_run_keeps_the_texts_about_its_users(trained: Path, prepared: Path) -> None:
    texts = {user.id: user.text for user in read_prepared(prepared).users if user.seen and user.text}
    assert texts
    assert load_policy(trained).user_texts == texts


def test_the_recipe_of_a_run_repeats_it(tmp_path: Path, trained: Path, make_config: MakeConfig) -> None:
    values = load_recipe(trained / "recipe.yaml")["train"] | {"out": tmp_path / "again"}
    train(type(make_config(tmp_path)).model_validate(values))
    first, second = ([numbers(r) for r in metrics.read(run / "metrics.jsonl")] for run in (trained, tmp_path / "again"))
    assert first == second


def test_full_finetuning_scores_against_the_base_it_started_from(tmp_path: Path, make_config: MakeConfig) -> None:
    """At step 1 the margin is the soft prompts' alone; later the reference must not have moved along."""
    config = make_config(tmp_path / "r", full_finetune=True, user_model="uniform", user_tokens=0, user_text=False,
                         lr=1e-3, max_steps=30, batch_size=6, save_every=100)  # fmt: skip
    train(config)
    rows = [r for r in metrics.read(tmp_path / "r/metrics.jsonl") if "loss" in r]
    assert rows[0]["loss"] == pytest.approx(0.6931472, abs=1e-4)
    assert rows[-1]["loss"] < 0.6  # against itself it would stay log 2


def test_gradient_checkpointing_is_on_and_changes_nothing(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, backward = set[bool](), Loop.backward

    def watched(self: Loop, batches: Any) -> Any:
        seen.add(any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()))
        return backward(self, batches)

    monkeypatch.setattr(Loop, "backward", watched)
    for name, on in (("off", False), ("on", True)):
        seen.clear()
        train(make_config(tmp_path / name, max_steps=2, gradient_checkpointing=on))
        assert seen == {on}
    off, on_ = weights(tmp_path / "off"), weights(tmp_path / "on")
    for name, value in off.items():
        torch.testing.assert_close(value, on_[name], rtol=0, atol=1e-5)


def test_a_trained_run_is_read_back_as_it_was(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    """The evaluation of the policy in memory and of the one on disk agree to the last digit that counts."""
    results = train(make_config(tmp_path / "r", lora_dropout=0.1))
    policy = load_policy(tmp_path / "r", "cpu", "fp32")
    again = loop_of(policy, read_prepared(prepared).eval).evaluate()
    assert again["margin_by_user"] == pytest.approx(results["eval"]["margin_by_user"], abs=1e-6)
    assert again["margin_mean"] != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_targets": "nothing"}, "lora_targets = 'nothing': 'nothing' fits no layer"),
        ({"max_tokens": 8}, "the prompt of 'train-0' has .* tokens"),
        ({"dataset": "nowhere"}, "nowhere is not a prepared data set"),
        ({"device": "gpu"}, "device 'gpu' is not known"),
    ],
)
def test_bad_settings_stop_before_anything_is_written(
    tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PrlhfError, match=message):
        train(make_config(tmp_path / "r", **changes))
    assert not (tmp_path / "r").exists()


def test_no_training_rows_are_refused(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "empty", Prepared([], data.eval, data.users, {"dataset": "small"}))
    with pytest.raises(PrlhfError, match="holds no training comparisons"):
        train(make_config(tmp_path / "r", dataset=str(tmp_path / "empty")))


def test_no_eval_rows_are_no_error(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "d", Prepared(data.train, [], data.users, {"dataset": "small"}))
    results = train(make_config(tmp_path / "r", dataset=str(tmp_path / "d"), max_steps=1))
    assert "eval" not in results


def test_no_eval_rows_with_evaluations_asked_for(tmp_path: Path, make_config: MakeConfig, prepared: Path) -> None:
    data = read_prepared(prepared)
    write_prepared(tmp_path / "d", Prepared(data.train, [], data.users, {"dataset": "small"}))
    train(make_config(tmp_path / "r", dataset=str(tmp_path / "d"), max_steps=2, eval_every=1))
    assert all("eval" not in row for row in metrics.read(tmp_path / "r/metrics.jsonl"))
