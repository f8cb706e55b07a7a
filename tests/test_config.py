"""The source of each setting's value, refused values, and saved configs, which are read back unchanged."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prlhf.config import STAGES, GenerateConfig, JudgeConfig, PrepConfig, Stage, TrainConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import load_recipe, parse_override, parse_overrides, resolve

# ---- precedence ----


def test_default_recipe_set_flag_in_rising_order() -> None:
    recipe = {"alpha": 0.1, "beta": 0.2, "nll": 0.3}
    overrides = parse_overrides(["beta=0.4", "nll=0.5", "nll=0.6"], "train")
    flags = {"nll": 0.7, "k": None, "alpha": None}
    config = resolve(TrainConfig, recipe, overrides, flags)
    assert (config.lora_r, config.alpha, config.beta, config.nll, config.k) == (8, 0.1, 0.4, 0.7, 10)
    assert resolve(TrainConfig, recipe, overrides).nll == 0.6


def test_zero_and_false_are_given() -> None:
    config = resolve(TrainConfig, {"alpha": 0.5, "user_text": True}, {"alpha": 0, "user_text": False})
    assert (config.alpha, config.user_text) == (0.0, False)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("alpha=0.3", "alpha", 0.3),
        ("train.alpha=0.3", "alpha", 0.3),
        ("user-tokens=4", "user_tokens", 4),
        (" alpha =1", "alpha", 1),
        ("model=a=b", "model", "a=b"),
        ("lora_targets='q,v'", "lora_targets", "q,v"),
        ("user_text=false", "user_text", False),
        ("lr=1e-4", "lr", "1e-4"),  # text in YAML, resolved to a number
        ("out=runs/x: y", "out", {"runs/x": "y"}),  # refused when it is resolved
    ],
)
def test_parse_override(text: str, key: str, value: Any) -> None:
    assert parse_override(text, "train") == (key, value)


def test_exponents_without_a_point_are_numbers() -> None:
    assert resolve(TrainConfig, parse_overrides(["lr=1e-4"], "train")).lr == 1e-4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alpha", "'alpha' is not key=value; write it as in --set alpha=0.3"),
        ("=0.3", "'=0.3' is not key=value"),
        ("train.=0.3", "'train.=0.3' is not key=value"),
        ("alpha=[1", "cannot read the value of 'alpha=[1'"),
        ("alpha=", "--set alpha= gives no value; leave it out"),
        ("alpha=null", "--set alpha= gives no value"),
        ("k=" + "9" * 5000, "4300 digits"),
        ("k=" + "[" * 5000, "nested too deeply"),
        ("k=&a [*a]", "nested too deeply"),
        ("k=2026-13-45", "month must be in"),
    ],
)
def test_bad_override(text: str, said: str) -> None:
    with pytest.raises(PrlhfError) as caught:
        parse_overrides([text], "train")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- refused values ----

RANGE, KIND = "is refused: it is out of range", "is refused: it is of the wrong kind"


@pytest.mark.parametrize(
    ("stage", "values", "said"),
    [
        (TrainConfig, {"alpha": 1.7}, f"alpha = 1.7 {RANGE}; set alpha to a number that is at least 0 and at most 1"),
        (TrainConfig, {"alpha": float("nan")}, f"alpha = nan {KIND}; set alpha to a number that is at least 0"),
        (TrainConfig, {"lr": float("inf")}, f"lr = inf {KIND}; set lr to a number that is above 0"),
        (TrainConfig, {"k": 0}, f"k = 0 {RANGE}; set k to a whole number that is at least 1"),
        (TrainConfig, {"k": "ten"}, f"k = 'ten' {KIND}; set k to a whole number that is at least 1"),
        (TrainConfig, {"max_steps": 1.5}, f"max_steps = 1.5 {KIND}; set max_steps to a whole number"),
        (TrainConfig, {"full_finetune": "no!"}, f"full_finetune = 'no!' {KIND}; set full_finetune to true or false"),
        (TrainConfig, {"model": ["a"]}, f"model = ['a'] {KIND}; set model to a text"),
        (TrainConfig, {"out": {"runs": "x"}}, "set out to a text"),
        (TrainConfig, {"lora_dropout": 1}, f"{RANGE}; set lora_dropout to a number that is at least 0 and below 1"),
        (TrainConfig, {"user_model": "clutser"}, "user_model = 'clutser' is not known; did you mean 'cluster'?"),
        (TrainConfig, {"schedule": 3}, "schedule = 3 is not known; known: constant, cosine, linear"),
        (TrainConfig, {"user_tokens": 0}, "user_tokens = 0 leaves user_model = individual without any parameter; set"),
        (TrainConfig, {"aplha": 1}, "unknown key 'aplha' for train; did you mean 'alpha'?"),
        (TrainConfig, {3: 1}, "unknown key '3' for train"),
        (GenerateConfig, {"top_p": 0}, f"top_p = 0 {RANGE}; set top_p to a number that is above 0 and at most 1"),
        (JudgeConfig, {"bootstrap": 0}, f"bootstrap = 0 {RANGE}"),
        (PrepConfig, {"dataset": "demo", "columns": "x"}, f"columns = 'x' {KIND}; set columns to a mapping"),
        (PrepConfig, {"dataset": "demo", "columns": {"a": 1}}, f"columns.a = 1 {KIND}"),
        (PrepConfig, {}, "dataset is missing; set dataset to a text"),
    ],
)  # fmt: skip
def test_refused_with_what_to_do(stage: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(PrlhfError) as caught:
        resolve(stage, values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Input" not in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "key"), [(TrainConfig, "user_model"), (TrainConfig, "loss"), (GenerateConfig, "baseline")]
)
def test_a_key_says_which_extensions_we_have(stage: type[Stage], key: str) -> None:
    """Its meaning names them all, so does the JSON schema, and the default is one of them."""
    field, names = stage.model_fields[key], stage.declared[key].named
    assert names is not None
    assert set(names.ours) - {"none"} <= set(re.findall(r"[\w-]+", str(field.description)))
    assert stage.model_json_schema()["properties"][key]["enum"] == list(names)
    assert field.default in names.ours


def test_settings_are_made_without_importing_models() -> None:
    """Facts of extensions are asked where a value needs them; what is wrong with the others is said at once."""
    config = "from prlhf.config import GenerateConfig, TrainConfig; TrainConfig(loss='sigmoid', nll=0)"
    more = "TrainConfig(user_model='cluster'); TrainConfig(objective='sft'); GenerateConfig(baseline='base')"
    code = f"import sys; {config}; {more}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vanilla_needs_no_user_tokens() -> None:
    assert resolve(TrainConfig, {"user_model": "uniform", "user_tokens": 0}).user_tokens == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: [1\n", "cannot read recipe"),
        ("- train\n", "holds no sections; use the sections prep, train, adapt, generate, serve, judge"),
        ("trian: {}\n", "unknown section 'trian'; did you mean 'train'?"),
        ("3: {}\n", "unknown section '3'"),
        ("train:\n", "section 'train' of"),
        ("train: 3\n", "is not a mapping; write one `key: value` per line"),
        ("train: {k: " + "9" * 5000 + "}", "4300 digits"),
        ("train: " + "[" * 5000, "nested too deeply"),
        ("train: &a {k: *a}", "nested too deeply"),
        ("train: {k: 2026-13-45}", "month must be in"),
        ("train: !!python/object/apply:os.system [ls]\n", "cannot read recipe"),
        ("train: {a: \x00}\n", "cannot read recipe"),
    ],
)
def test_bad_recipe(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(PrlhfError) as caught:
        load_recipe(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PrlhfError, match="cannot read recipe"):
        load_recipe(tmp_path / "r.yaml")


def test_no_recipe_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# nothing yet\n")
    assert load_recipe(None) == load_recipe(tmp_path / "r.yaml") == {}


# ---- saved configs ----


def values_of(stage: type[Stage]) -> st.SearchStrategy[dict[str, Any]]:
    """Any valid values of a stage's keys, some of them missing."""
    values = {
        key: st.sampled_from(list(names)) if (names := about.named) else _values(field.annotation, field.metadata)
        for (key, field), about in zip(stage.model_fields.items(), stage.declared.values(), strict=True)
    }
    required = {key: values[key] for key, field in stage.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(required, optional={k: v for k, v in values.items() if k not in required})


def _values(kind: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    limits = {name: getattr(rule, name) for rule in rules for name in ("gt", "ge", "lt", "le") if hasattr(rule, name)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_args(kind) and type(None) in typing.get_args(kind):
        return st.none() | _values(typing.get_args(kind)[0], rules)
    text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)
    return {
        bool: st.booleans(),
        int: st.integers(low, high),
        float: st.floats(
            low, high, exclude_min="gt" in limits, exclude_max="lt" in limits, allow_nan=False, allow_infinity=False
        ),
        str: text,
        Path: text.map(Path),
        dict[str, str]: st.dictionaries(text, text, max_size=2),
        dict[str, Any]: st.dictionaries(text, text | st.lists(text, max_size=2), max_size=2),
    }[kind]


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_saved_and_read_again(name: str, data: st.DataObject) -> None:
    stage = STAGES[name]
    values = data.draw(values_of(stage))
    if values.get("user_tokens") == 0:
        values["user_model"] = "uniform"
    if values.get("full_finetune") or values.get("lora_variant") == "dora":
        values["user_in"] = "prompt"
    if values.get("loss") == "exo_pair":
        values["label_smoothing"] = values.get("label_smoothing") or 1e-3
    if values.get("best_of", 1) == 1 or values.get("reward") is None or values.get("baseline") == "chosen":
        values = {key: value for key, value in values.items() if key not in ("best_of", "reward")}
    elif values.get("temperature") == 0:
        values["temperature"] = 0.5
    if values.get("max_replicas") is not None:
        values["max_replicas"] += values.get("replicas", 0)
    if values.get("objective") in ("online-dpo", "grpo", "rloo"):
        values |= {"reward": Path("rm"), "full_finetune": False}
    if values.get("stop_metric"):
        values["stop_metric"] = "nats_per_token" if values.get("objective") == "sft" else "margin_mean"
    config = stage.saved(values)  # the keys that apply
    saved = yaml.safe_dump({name: config.model_dump(mode="json")}, sort_keys=False)
    assert resolve(stage, yaml.safe_load(saved)[name]) == config


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_override_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(PrlhfError):
        resolve(TrainConfig, parse_overrides([text], "train"))
