"""A run whose numbers are no longer finite ends there, says where, and leaves what was good."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prlhf.dataset import read_prepared
from prlhf.errors import NotFinite
from prlhf.model.rewards import Scored, accuracy_by
from prlhf.parse import json_text
from prlhf.train import encode, loop, metrics, objectives, optimizer
from prlhf.train.objectives import DPO, RowLosses
from prlhf.train.per_user import train_per_user
from prlhf.train.run import train

MakeConfig = Callable[..., Any]
NAN = float("nan")


def strict_json(text: str) -> Any:
    def refused(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refused)


def check_unfinished(folder: Path) -> None:
    """Nothing looks finished, and what is there is JSON."""
    assert not (folder / "model").exists()
    assert not (folder / "results.json").exists()
    log = folder / "metrics.jsonl"  # there is none of a run that ended in its first step
    for line in log.read_text().splitlines() if log.exists() else []:
        strict_json(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_tokens": 1},
        {"objective": "rm"},
        {"objective": "sft"},
        {"user_model": "uniform", "user_tokens": 0, "accumulation": 2},
        {"full_finetune": True},
        {"user_model": "cluster"},
    ],
    ids=["dpo", "rm", "sft", "vanilla", "full", "cluster"],
)
def test_a_rate_that_is_absurd(tmp_path: Path, make_config: MakeConfig, changes: dict[str, Any]) -> None:
    config = make_config(tmp_path / "run", lr=1e30, save_every=100, **changes)
    with pytest.raises(
        NotFinite, match=r"is not finite at step [12]: .*no checkpoint .*lower lr \(now 1e\+30\)"
    ) as error:
        train(config)
    assert "\n" not in str(error.value)
    check_unfinished(tmp_path / "run")


def test_one_adapter_per_user(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(NotFinite, match="user ann: the loss is not finite at step 2"):
        train_per_user(make_config(tmp_path / "run", lr=1e30))
    assert not (tmp_path / "run/results.json").exists()


def poisoned(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[RowLosses, Any], RowLosses]) -> None:
    """Let `spoil` change the losses of training."""
    losses = DPO.losses
    monkeypatch.setattr(DPO, "losses", lambda self, values, batch: spoil(losses(self, values, batch), batch))


def test_a_bad_row_is_named(tmp_path: Path, make_config: MakeConfig, prepared: Path, monkeypatch: Any) -> None:
    """Only its own loss is nan, so it and not the rate is to blame."""
    row = next(i for i, row in enumerate(read_prepared(prepared).train) if row.id == "train-4")
    sets: list[encode.EncodedSet] = []
    made = encode.EncodedSet.__init__
    monkeypatch.setattr(encode.EncodedSet, "__init__", lambda s, *given: (made(s, *given), sets.append(s))[0])

    def spoil(found: RowLosses, batch: Any) -> RowLosses:
        bad = torch.tensor([NAN if e is sets[0].encoded[row] else 0.0 for e in batch])
        return RowLosses(found.losses + bad, found.logs)

    poisoned(monkeypatch, spoil)
    with pytest.raises(NotFinite, match="the loss of comparison train-4 is not finite at step") as e:
        train(make_config(tmp_path / "run", save_every=100))
    assert e.value.hint == f"look at these rows of {prepared}"
    check_unfinished(tmp_path / "run")


def test_what_was_good_is_kept_and_gone_on_with(tmp_path: Path, make_config: MakeConfig, monkeypatch: Any) -> None:
    """Poison at step 5: checkpoint 4 stays, and from it the run ends as if nothing had been."""
    config = make_config(tmp_path / "run")
    calls = [0]

    def spoil(found: RowLosses, batch: Any) -> RowLosses:
        calls[0] += 1
        return RowLosses(found.losses + (NAN if calls[0] > 8 else 0.0), found.logs)

    with monkeypatch.context() as patch:
        poisoned(patch, spoil)
        with pytest.raises(NotFinite, match="is not finite at step 5: the run ended there, checkpoint-4 is kept"):
            train(config)
    check_unfinished(tmp_path / "run")
    assert [row["step"] for row in metrics.read(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]
    resumed, whole = train(config, resume=True), train(make_config(tmp_path / "whole"))
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    weights = [load_file(run / "model/user_model.safetensors") for run in (tmp_path / "run", tmp_path / "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_gradient_under_a_loss_that_is_fine(tmp_path: Path, make_config: MakeConfig, monkeypatch: Any) -> None:
    clip = loop.clip_grad_norm

    def infinite(parameters: Any, norm: float) -> Any:
        parameters = list(parameters)
        grad = next(p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse)
        grad.fill_(math.inf)
        return clip(parameters, norm)

    monkeypatch.setattr(loop, "clip_grad_norm", infinite)
    with pytest.raises(NotFinite, match="the gradient is not finite at step 1"):
        train(make_config(tmp_path / "run"))
    check_unfinished(tmp_path / "run")


@pytest.mark.parametrize("every", [0, 2])
def test_an_evaluation(tmp_path: Path, make_config: MakeConfig, monkeypatch: Any, every: int) -> None:
    monkeypatch.setattr(objectives, "score", lambda rewards, data, users, *rest: [Scored(NAN, 0.0) for _ in data])
    with pytest.raises(NotFinite, match="the rewards of 8 of 8 held-out comparisons are not finite, such as of 'ann'"):
        train(make_config(tmp_path / "run", eval_every=every))
    check_unfinished(tmp_path / "run")


def test_weights_that_the_last_step_broke(tmp_path: Path, make_config: MakeConfig, monkeypatch: Any) -> None:
    """No loss is computed after them, and nothing may be held out; a checkpoint of them would not be good either."""
    step = optimizer.RowAdamW.step

    def broken(self: Any, closure: None = None) -> None:
        step(self, closure)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(math.inf)

    monkeypatch.setattr(optimizer.RowAdamW, "step", broken)
    with pytest.raises(NotFinite, match="the weights are not finite at step 1"):
        train(make_config(tmp_path / "run", max_steps=1, save_every=100))
    check_unfinished(tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))


def test_a_margin_that_is_nan_is_not_lost() -> None:
    with pytest.raises(NotFinite, match="1 of 2 held-out comparisons are not finite, such as of 'b'"):
        accuracy_by(["a", "b"], [Scored(1.0, 0.0), Scored(NAN, 0.0)])


def test_json_has_no_nan() -> None:
    value = {"a": [1.0, NAN, (math.inf,)], "b": {"c": -math.inf, "d": "NaN", "e": None, "f": 3}}
    found = strict_json(json_text(value))
    assert found == {"a": [1.0, None, [None]], "b": {"c": None, "d": "NaN", "e": None, "f": 3}}
