"""Early stopping: the best evaluation is found, its model is kept, and a resumed run stops where it would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from losses import numbers
from typing_extensions import override

from prlhf.config import ClusterConfig, TrainConfig
from prlhf.config.train import METRICS
from prlhf.dataset import read_prepared, write_prepared
from prlhf.errors import PrlhfError
from prlhf.model.rewards import load_rewards, score
from prlhf.progress import Silent
from prlhf.start_training import run_training, start
from prlhf.train import metrics, run
from prlhf.train.early_stopping import Standing, standing
from prlhf.train.encode import encode
from prlhf.train.per_user import train_per_user
from prlhf.train.run import train

MakeConfig = Callable[..., Any]

# a learning rate that ruins what was learned; dropout, so that random states matter; checkpoints between evaluations
OPTIONS: dict[str, Any] = {
    "max_steps": 30, "save_every": 5, "eval_every": 3, "lora_dropout": 0.2, "schedule": "constant", "lr": 3e-2,
    "user_lr": 0.3, "stop_metric": "margin_mean", "patience": 2, "batch_size": 1,
}  # fmt: skip


class Heard(Silent):
    """Notes what is said; dies when the loss of step `dies` has been logged."""

    def __init__(self, dies: int = 0) -> None:
        self.lines: list[str] = []
        self.left = dies

    @override
    def note(self, line: str) -> None:
        self.lines.append(line)

    @override
    def advance(self, steps: int = 1, **values: float) -> None:
        self.left -= "loss" in values
        if self.left == 0 and "loss" in values:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    heard = Heard()
    train(make_config(folder, **OPTIONS), progress=heard)
    (folder.parent / "heard").write_text("\n".join(heard.lines))
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())  # type: ignore[no-any-return]


def evaluations(folder: Path, metric: str = "margin_mean") -> dict[int, float]:
    return {row["step"]: row["eval"][metric] for row in metrics.read(folder / "metrics.jsonl") if "eval" in row}


def assert_same_model(one: Path, other: Path) -> None:
    for name in ("adapter_model.safetensors", "user_model.safetensors"):
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes()


def test_the_standing_is_that_of_the_best() -> None:
    rows: list[dict[str, Any]] = [{"step": i, "loss": 1.0} for i in (1, 2)]
    assert standing(rows, "x") is None
    for step, value in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.1)):
        rows.append({"step": step, "eval": {"x": value, "nats_per_token": value}})
    assert standing(rows, "x") == Standing(2, 0.7, 2)  # of equal ones the first
    assert standing(rows, "nats_per_token") == Standing(4, 0.1, 0)  # less is better


@given(st.lists(st.integers(0, 5), min_size=1), st.booleans())
def test_the_best_is_the_first_extreme_value(values: list[int], less: bool) -> None:
    name = "nats_per_token" if less else "margin_mean"
    found = standing([{"step": i, "eval": {name: float(v)}} for i, v in enumerate(values)], name)
    best = values.index(min(values) if less else max(values))
    assert found == Standing(best, float(values[best]), len(values) - 1 - best)


def test_the_run_stops_and_keeps_the_best(stopped: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """To the last bit the model is that of a run that ended at the best step, as are users who were trained later."""
    results, seen = results_of(stopped), evaluations(stopped)
    best = results["best"]
    assert best == {
        "metric": "margin_mean", "step": max(seen, key=lambda step: seen[step]), "value": max(seen.values()),
        "stopped": True,
    }  # fmt: skip
    assert results["steps"] == list(seen)[-1] == best["step"] + 2 * OPTIONS["eval_every"] < OPTIONS["max_steps"]
    assert results["eval"]["margin_mean"] == best["value"]
    assert not (stopped / "checkpoints").exists()
    said = f"stopped after step {results['steps']}: margin_mean is best at step {best['step']} ({best['value']:.4g})"
    assert said in (stopped.parent / "heard").read_text()
    assert f"the model after step {best['step']}" in (stopped / "model/README.md").read_text()
    short = {key: value for key, value in OPTIONS.items() if key not in ("stop_metric", "patience")}
    train(make_config(tmp_path / "short", **(short | {"max_steps": best["step"], "save_every": 3})))
    assert_same_model(stopped, tmp_path / "short")


def test_the_model_has_the_accuracy_that_is_told(stopped: Path, prepared: Path) -> None:
    policy, rewards = load_rewards(stopped, "cpu")
    held_out = encode(policy, read_prepared(prepared))[1]
    scored = score(rewards, held_out.encoded, [row.user_index for row in held_out.encoded], 4)
    margin = sum(one.margin for one in scored) / len(scored)
    assert margin == pytest.approx(results_of(stopped)["eval"]["margin_mean"], abs=1e-4)


def test_rows_of_users_who_came_later_are_as_they_were(make_config: MakeConfig, tmp_path: Path) -> None:
    """What is held out says the opposite, so the first step is best: one user was trained by then."""
    data = read_prepared(Path(make_config(tmp_path).dataset))
    turned = [replace(row, chosen=row.rejected, rejected=row.chosen) for row in data.eval]
    write_prepared(tmp_path / "data", replace(data, eval=turned))
    options = OPTIONS | {"dataset": str(tmp_path / "data"), "patience": 50, "max_steps": 8, "eval_every": 1}
    train(make_config(tmp_path / "run", **options))
    best = results_of(tmp_path / "run")["best"]
    assert (best["step"], best["stopped"]) == (1, False)
    short = {key: value for key, value in options.items() if key not in ("stop_metric", "patience")}
    train(make_config(tmp_path / "short", **(short | {"max_steps": best["step"]})))
    assert_same_model(tmp_path / "run", tmp_path / "short")


@pytest.mark.parametrize("at", [2, 6, 8, 11])
def test_resumed_is_uninterrupted(tmp_path: Path, make_config: MakeConfig, stopped: Path, at: int) -> None:
    """Killed before a checkpoint, between the best evaluation and a checkpoint, and while the run waits."""
    config = make_config(tmp_path / "run", **OPTIONS)
    at = min(at, results_of(stopped)["steps"])
    with pytest.raises(ZeroDivisionError):
        train(config, progress=Heard(dies=at))
    train(config, resume=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
    assert_same_model(tmp_path / "run", stopped)
    same = {"run": "", "reference": {}}
    assert numbers(results_of(tmp_path / "run")) | same == numbers(results_of(stopped)) | same


def test_killed_between_the_stop_and_the_model(
    tmp_path: Path, make_config: MakeConfig, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained again, whatever the checkpoints are."""
    config = make_config(tmp_path / "run", **(OPTIONS | {"save_every": 1000}))
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda *args: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    train(config, resume=True, progress=Heard(dies=1))
    assert_same_model(tmp_path / "run", stopped)


def test_the_last_step_may_be_the_best(tmp_path: Path, make_config: MakeConfig) -> None:
    """It is evaluated, too, where eval_every does not divide the steps."""
    heard = Heard()
    options = OPTIONS | {"max_steps": 4, "lr": 1e-3, "user_lr": 1e-3}
    results = train(make_config(tmp_path / "run", **options), progress=heard)
    assert list(evaluations(tmp_path / "run")) == [3, 4]
    assert results["best"]["step"] == 4
    assert not any("is kept" in line for line in heard.lines)


def test_patience_may_change(tmp_path: Path, make_config: MakeConfig, stopped: Path) -> None:
    config = make_config(tmp_path / "run", **OPTIONS)
    steps = results_of(stopped)["steps"]
    with pytest.raises(ZeroDivisionError):
        train(config, progress=Heard(dies=steps - 1))
    train(config.model_copy(update={"patience": 3}), resume=True)
    assert results_of(tmp_path / "run")["steps"] > steps
    assert_same_model(tmp_path / "run", stopped)


@pytest.mark.parametrize("objective", ["rm", "sft"])
def test_other_objectives(tmp_path: Path, make_config: MakeConfig, objective: str) -> None:
    """Supervised fine-tuning overfits with less than 12 texts; less is better."""
    metric = "nats_per_token" if objective == "sft" else "accuracy_worst_tenth"
    options = OPTIONS | {"objective": objective, "stop_metric": metric, "patience": 2}
    results = train(make_config(tmp_path / "run", **(options if objective == "rm" else without_users(options))))
    seen = evaluations(tmp_path / "run", metric)
    wanted = (min if objective == "sft" else max)(seen.values())
    assert results["best"]["value"] == results["eval"][metric] == wanted
    assert results["best"]["step"] == next(step for step, value in seen.items() if value == wanted)
    assert results["best"]["stopped"]
    if objective == "sft":
        assert f"step {results['best']['step']}" in (tmp_path / "run/model/README.md").read_text()


def without_users(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "user_lr"}


def test_the_numbers_of_evaluations_are_known(stopped: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    train(make_config(tmp_path / "sft", objective="sft", max_steps=1, eval_every=1))
    for folder, objective in ((stopped, "dpo"), (tmp_path / "sft", "sft")):
        summary = next(row["eval"] for row in metrics.read(folder / "metrics.jsonl") if "eval" in row)
        assert sorted(METRICS[objective]) == sorted(key for key, value in summary.items() if isinstance(value, float))


def test_one_adapter_per_user(tmp_path: Path, make_config: MakeConfig) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "user_lr"}
    results = train_per_user(make_config(tmp_path / "run", **options, user_model="uniform", user_tokens=0))
    assert results["best_step_by_user"] == {
        user: results_of(tmp_path / "run/users" / str(number))["best"]["step"]
        for number, user in enumerate(("ann", "bob", "cat"), start=1)
    }
    assert results["eval"]["margin_by_user"]["ann"] == results_of(tmp_path / "run/users/1")["best"]["value"]


# ---- refused ----


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"stop_metric": "accuracy_makro", "eval_every": 5},
         "stop_metric = accuracy_makro is not a metric of objective = dpo; did you mean 'accuracy_macro'"),
        ({"stop_metric": "accuracy_macro", "eval_every": 5, "objective": "sft"},
         "stop_metric = accuracy_macro is not a metric of objective = sft; known: nats_per_response, nats_per_token"),
        ({"stop_metric": "accuracy_macro"},
         "stop_metric = accuracy_macro is not used with eval_every = 0; leave stop_metric out, or set eval_every to"),
        ({"patience": 5, "eval_every": 5}, "patience = 5 is not used with stop_metric = none"),
    ],
)  # fmt: skip
def test_refused_settings(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(PrlhfError) as error:
        TrainConfig.model_validate(settings)
    assert str(error.value).startswith(line)


def test_refused_without_held_out_comparisons(tmp_path: Path, make_config: MakeConfig) -> None:
    data = read_prepared(Path(make_config(tmp_path).dataset))
    write_prepared(tmp_path / "data", replace(data, eval=[]))
    with pytest.raises(PrlhfError, match=r"needs evaluations, and .* has no held-out comparisons; hold some out"):
        train(make_config(tmp_path / "run", **OPTIONS, dataset=str(tmp_path / "data")))
    assert not (tmp_path / "run").exists()
    write_prepared(tmp_path / "seen", replace(data, eval=[row for row in data.eval if row.user_id == "ann"]))
    values = OPTIONS | {"dataset": str(tmp_path / "seen"), "stop_metric": "accuracy_unseen"}
    with pytest.raises(PrlhfError, match="no held-out comparison is one of unseen users"):
        train(make_config(tmp_path / "run", **values))
    with pytest.raises(PrlhfError, match="has no held-out comparisons of user bob"):
        train_per_user(make_config(tmp_path / "run", **{k: v for k, v in OPTIONS.items() if k != "user_lr"},
                                   user_model="uniform", user_tokens=0, dataset=str(tmp_path / "seen")))  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_refused_where_no_worker_has_the_whole_model(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(PrlhfError, match="stop_metric = margin_mean does not go with parallel = fsdp"):
        start(make_config(tmp_path / "run", **OPTIONS), ClusterConfig(workers=2, parallel="fsdp"))
    assert not (tmp_path / "run").exists()


def test_the_metric_must_stay(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(ZeroDivisionError):
        train(make_config(tmp_path / "run", **OPTIONS), progress=Heard(dies=7))
    with pytest.raises(PrlhfError, match="was started with stop_metric = margin_mean, not accuracy_macro"):
        run_training(typed={"out": tmp_path / "run", "stop_metric": "accuracy_macro"}, resume=True)
