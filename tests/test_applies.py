"""Settings that do not apply are refused, others are accepted, and every key is in the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from prlhf.config import STAGES, ClusterConfig, GenerateConfig, Stage, SweepConfig, TrainConfig
from prlhf.config.keys import Key
from prlhf.errors import PrlhfError
from prlhf.recipes import resolve

TABLES = {stage: STAGES[stage].declared for stage in ("prep", "train", "adapt", "generate", "cluster", "sweep")}
SFT, RM, CLUSTER = {"objective": "sft"}, {"objective": "rm"}, {"user_model": "cluster"}
VANILLA = {"user_model": "uniform", "user_tokens": 0}
CHOSEN = {"baseline": "chosen"}
ONLINE = {"objective": "online-dpo", "reward": Path("rm")}
GRPO, RLOO = ({"objective": name, "reward": Path("rm")} for name in ("grpo", "rloo"))
ASK: dict[str, Any] = {"ask": True}

# key -> (a value that is not the default, settings where it does not apply, settings where it does)
CASES: dict[str, dict[str, tuple[Any, dict[str, Any], dict[str, Any]]]] = {
    "train": {
        "user_model": ("cluster", SFT, RM),
        "k": (5, {"user_model": "individual"}, CLUSTER),
        "user_tokens": (3, SFT, RM),
        "user_in": ("adapter", SFT, RM),
        "gates": ("block", {}, {"user_in": "adapter"}),
        "gate_scale": (1.0, {"user_in": "prompt"}, {"user_in": "both"}),
        "gate_lr": (0.1, {}, {"user_in": "both"} | RM),
        "user_init": ("zero", VANILLA, {"user_model": "uniform"}),
        "cluster_weights": ("linear", {"user_model": "uniform"}, CLUSTER),
        "cluster_lr": (0.1, {}, CLUSTER),
        "user_lr": (0.1, VANILLA, VANILLA | RM),
        "user_text": (False, {}, {}),
        "loss": ("ipo", GRPO, {}),
        "label_smoothing": (0.1, {"loss": "ipo"}, {"loss": "robust"}),
        "alpha": (0.3, {"user_model": "uniform"}, RM),
        "beta": (9.0, RM, RLOO),
        "nll": (1.0, RLOO, {}),
        "quantize": ("nf4", {"full_finetune": True}, SFT),
        "lora_r": (4, {"full_finetune": True}, SFT),
        "lora_alpha": (4, {"full_finetune": True}, {}),
        "lora_variant": ("dora", {"full_finetune": True}, SFT),
        "lora_dropout": (0.2, GRPO, ONLINE),
        "lora_targets": ("q_proj", {"full_finetune": True}, {}),
        "reference_cache": (False, {}, GRPO),
        "reference_first": (True, GRPO, {}),
        "stop_metric": ("accuracy_macro", {}, {"eval_every": 5}),
        "patience": (2, {"eval_every": 5}, {"eval_every": 5, "stop_metric": "margin_mean"}),
        "epochs": (2.0, GRPO, RM),
        "max_steps": (5, RLOO, SFT),
        "group_by_prompt": (True, ONLINE, {}),
        "reward": (Path("run"), {}, GRPO),
        "rounds": (3, {}, RLOO),
        "round_steps": (3, RM, ONLINE),
        "round_prompts": (3, {}, ONLINE),
        "candidates": (3, {}, ONLINE),
        "max_new_tokens": (3, SFT, ONLINE),
        "temperature": (0.5, GRPO, ONLINE),
        "replay": (3, RLOO, ONLINE),
        "offline_fraction": (0.1, GRPO, ONLINE),
        "advantage_scale": ("group", ONLINE, GRPO),
        "clip": (0.1, ONLINE, RLOO),
        "sample_every": (5, RM, SFT),
        "sample_users": (1, {}, {"sample_every": 5}),
        "sample_prompts": (1, {}, {"sample_every": 5}),
    },
    "adapt": {
        "choices": (Path("c.jsonl"), ASK, {}),
        "answers": (Path("a.jsonl"), {}, ASK),
        "pool": (Path("p.jsonl"), {}, ASK),
        "prompts": (Path("p.txt"), {}, ASK),
        "candidates": (3, ASK, {**ASK, "prompts": "p.txt"}),
        "max_new_tokens": (5, ASK, {**ASK, "prompts": "p.txt"}),
        "sure": (0.1, {}, ASK),
        "seed": (3, {}, ASK),
    },
    "generate": {
        "prompt_column": ("question", {}, {"prompts": "a.csv"}),
        "users": ("ann", {"baseline": "base"}, CHOSEN),
        "unknown_as_generic": (True, {"baseline": "base"}, {}),
        "examples": (2, {"baseline": "oracle"}, {"baseline": "in-context"}),
        "skip_long": (True, CHOSEN, {}),
        "template_options": ({"enable_thinking": False}, CHOSEN, {}),
        "model": ("tiny", CHOSEN, {}),
        "trust_remote_code": (True, CHOSEN, {}),
        "max_new_tokens": (3, CHOSEN, {}),
        "batch_size": (3, CHOSEN, {}),
        "temperature": (0.5, CHOSEN, {}),
        "top_p": (0.5, {"temperature": 0}, {}),
        "device": ("cpu", CHOSEN, {}),
        "precision": ("bf16", CHOSEN, {}),
    },
    "sweep": {
        "seed": (3, {}, {"trials": 4}),
        "against": ("a.jsonl", {}, {"metric": "judge/winrate"}),
        "grace": (3, {}, {"asha": True}),
        "reduction": (2.0, {}, {"asha": True}),
    },
}  # fmt: skip
CHOICES = {"user_init": "choices"}
# values without effect, accepted where their key does not apply
IDLE = [{**SFT, "user_model": "uniform", "user_tokens": 0, "user_text": False}, {**RM, "nll": 0.0}, {**SFT, "nll": 0}]


@pytest.mark.parametrize("stage", TABLES)
def test_every_conditional_key_is_tried(stage: str) -> None:
    """Every key is declared with `key`, and every condition is on a key of its stage."""
    for field in STAGES[stage].model_fields.values():
        assert isinstance(field.json_schema_extra, Key)
    conditional = {key for key, rule in TABLES[stage].items() if rule.used}
    assert stage in ("prep", "cluster") or conditional == CASES[stage].keys()
    for rule in TABLES[stage].values():
        assert {need.key for need in rule.used} <= STAGES[stage].model_fields.keys()


@pytest.mark.parametrize(("stage", "key"), [(stage, key) for stage, cases in CASES.items() for key in cases])
def test_given_and_not_used(stage: str, key: str) -> None:
    model, (value, without, within) = STAGES[stage], CASES[stage][key]
    assert getattr(model(**within | {key: value}), key) == value
    if value in TABLES[stage][key].idle:
        return
    for build in (lambda: model(**without, **{key: value}), lambda: resolve(model, without, {key: value})):
        with pytest.raises(PrlhfError) as caught:
            build()
        assert f"{key} = {str(value).lower() if isinstance(value, bool) else value} is not used with" in str(
            caught.value
        )
        assert f"leave {key} out, or set " in str(caught.value)


@pytest.mark.parametrize("without", [VANILLA, {"user_model": "uniform"}, SFT])
def test_choices_start_users_who_differ(without: dict[str, Any]) -> None:
    """In both places, where other starts are for soft prompts; refused by name where all users are the same."""
    for user_in in ("prompt", "adapter", "both"):
        for user_model in ("individual", "cluster"):
            made = TrainConfig(user_in=user_in, user_model=user_model, **CHOICES)  # type: ignore[arg-type]
            assert made.user_init == "choices"
    assert TrainConfig(user_in="adapter", user_tokens=0, **CHOICES).user_init == "choices"  # type: ignore[arg-type]
    with pytest.raises(
        PrlhfError, match=r"user_init = choices is not used with (user_model = uniform|objective = sft)"
    ):
        TrainConfig(**without, **CHOICES)
    with pytest.raises(PrlhfError, match="user_init = zero is not used with user_in = adapter"):
        TrainConfig(user_in="adapter", user_init="zero")


@pytest.mark.parametrize("values", IDLE)
def test_what_asks_for_nothing_is_taken(values: dict[str, Any]) -> None:
    assert TrainConfig(**values) == resolve(TrainConfig, {}, values)


# ---- layers: a recipe and options ----


def test_a_typed_default_is_given() -> None:
    with pytest.raises(PrlhfError, match="k = 10 is not used with user_model = individual"):
        resolve(TrainConfig, {}, {"k": 10})
    assert resolve(TrainConfig, {"k": 10, "beta": 0.1, **RM}).beta == 0.1  # a recipe may spell out defaults


def test_what_is_typed_overrules_a_recipe() -> None:
    recipe = {"user_model": "cluster", "k": 3, "cluster_lr": 0.1, "alpha": 0.3, "beta": 9.0}
    assert resolve(TrainConfig, recipe, {"user_model": "individual"}).k == 10
    assert resolve(TrainConfig, recipe, SFT) == TrainConfig(**SFT)
    assert resolve(TrainConfig, recipe).k == 3


@pytest.mark.parametrize(
    "layers", [({"k": 3},), ({"k": 3, "user_model": "uniform"},), ({}, {"user_model": "uniform"}, {"k": 3})]
)
def test_a_recipe_or_line_that_contradicts_itself(layers: tuple[Mapping[str, Any], ...]) -> None:
    with pytest.raises(PrlhfError, match="k = 3 is not used with user_model"):
        resolve(TrainConfig, *layers)


# ---- saved configs ----


def test_what_earlier_versions_saved_is_read() -> None:
    """They saved every key, including those that do not apply."""
    saved = TrainConfig().model_dump(mode="json") | {"k": 5, "cluster_lr": 0.3}
    assert TrainConfig.saved(saved) == TrainConfig()
    assert TrainConfig.saved(saved | {"user_model": "cluster"}).k == 5


def test_a_run_s_recipe_holds_what_is_used(tmp_path: Path, trained: Path) -> None:
    values = yaml.safe_load((trained / "recipe.yaml").read_text())["train"]
    assert "k" not in values
    assert "alpha" in values
    assert resolve(TrainConfig, values).alpha == values["alpha"]


# ---- one kind of exception ----


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrainConfig(alpha=2),
        lambda: TrainConfig(user_tokens=0),
        lambda: TrainConfig(aplha=1),  # type: ignore[call-arg]
        lambda: TrainConfig.model_validate({"k": "ten"}),
        lambda: TrainConfig.model_validate_json('{"alpha": 2}'),
        lambda: TrainConfig.model_validate(3),
        lambda: TrainConfig.saved({"alpha": 2}),
        lambda: GenerateConfig(top_p=0),
        lambda: SweepConfig(reduction=1),
        lambda: ClusterConfig(workers=-1),
    ],
)
def test_a_config_raises_one_kind_of_exception(build: Any) -> None:
    with pytest.raises(PrlhfError) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_config_cannot_be_changed_and_can_be_copied() -> None:
    config: Stage = TrainConfig(alpha=0.3)
    assert config.model_copy(update={"out": Path("x")}).alpha == 0.3
    assert TrainConfig.model_validate(config) is config
