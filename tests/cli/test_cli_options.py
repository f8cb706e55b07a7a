"""Every key of every stage: declared once, with an option; given in three ways with one result."""

from __future__ import annotations

import json
import typing
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command
from typer.testing import CliRunner

from prlhf.config import STAGES
from prlhf.config.serve import ON_REPLICAS
from prlhf.errors import PrlhfError
from prlhf.extensions import JUDGES
from prlhf.recipes import resolve
from prlhf.sweep.space import merged_space
from prlhf_cli import options
from prlhf_cli.main import COMMANDS, app

STAGE_COMMANDS = {"cluster": ("train", "generate", "sweep")}
KEYS = [(stage, key) for stage, model in STAGES.items() for key in model.model_fields]
DATASETS = {
    "top_users": "tldr",
    "simulate": "tldr",
    "prefs": "prism",
    "judging_users": "prism",
    "text": "psoups",
    "shots": "personalllm",
    "concentration": "personalllm",
    "people": "personalrewardbench",
    "attributes": "ultrafeedback",
}
CROWD = ("users", "comparisons", "noise", "reveal", "unseen_fraction")
CUSTOM = ("columns", "split", "config", "revision", "bad_rows", "eval_fraction")
ROUNDS = (
    "rounds", "round_steps", "round_prompts", "candidates", "max_new_tokens", "temperature", "replay",
    "offline_fraction",
)  # fmt: skip
ONLINE = {"objective": "online-dpo", "reward": "run"}
GRPO = ONLINE | {"objective": "grpo"}
# settings with which a key is used, where the defaults do not use it
WITH: dict[str, dict[str, Any]] = {
    **{f"prep.{key}": {"dataset": "demo-crowd"} for key in CROWD},
    **{f"prep.{key}": {"dataset": name} for key, name in DATASETS.items()},
    **{f"prep.{key}": {"dataset": "some/where"} for key in CUSTOM},
    **{f"train.{key}": {"user_model": "cluster"} for key in ("k", "cluster_weights", "cluster_lr")},
    **{f"train.{key}": {"user_in": "adapter"} for key in ("gates", "gate_scale", "gate_lr")},
    **{f"train.{key}": {"sample_every": 5} for key in ("sample_users", "sample_prompts")},
    "train.stop_metric": {"eval_every": 5},
    "train.patience": {"eval_every": 5, "stop_metric": "margin_mean"},
    **{f"adapt.{key}": {"ask": True} for key in ("answers", "pool", "prompts", "sure", "seed")},
    **{f"adapt.{key}": {"ask": True, "prompts": "a.txt"} for key in ("candidates", "max_new_tokens")},
    "train.user_tokens": {},
    "train.reward": {"objective": "online-dpo"},
    **{f"train.{key}": ONLINE for key in ROUNDS},
    **{f"train.{key}": GRPO for key in ("advantage_scale", "clip")},
    "generate.examples": {"baseline": "in-context"},
    "generate.prompt_column": {"prompts": "a.csv"},
    "generate.best_of": {"reward": "run"},
    "generate.reward": {"best_of": 2},
    "sweep.seed": {"trials": 3},
    "sweep.against": {"metric": "judge/winrate"},
    "sweep.grace": {"asha": True},
    "sweep.reduction": {"asha": True},
    **{f"serve.{key}": {"replicas": 2} for key in STAGES["serve"].keys_under(ON_REPLICAS)},
    **{f"cluster.{key}": {"workers": 2} for key in STAGES["cluster"].model_fields if key != "workers"},
}  # fmt: skip
# values that a general one does not stand for
VALUES: dict[str, Any] = {
    "prep.dataset": "tldr", "train.template_options": {"enable_thinking": False}, "prep.columns": {"user_id": "who"},
    "generate.template_options": {"enable_thinking": False}, "judge.extra_body": {"top_k": 3},
    "adapt.columns": {"user_id": "who"},
    "train.stop_metric": "accuracy_macro",
    "train.objective": "rm",
    "serve.template_options": {"enable_thinking": False},
    "train.max_tokens": 64, "sweep.metric": "loss", "sweep.space": {"alpha": "0.2,0.5"}, "prep.noise": 0.25,
    "train.label_smoothing": 0.25, "sweep.reduction": 2.5, "judge.leave_out": "seed",
}  # fmt: skip


def commands() -> dict[str, Any]:
    group: Any = get_command(app)
    return dict(group.commands)


def command_of(stage: str) -> str:
    return "train" if stage == "cluster" else stage


def another_value(stage: str, key: str) -> Any:
    """A value that the key takes and that is not its default."""
    if f"{stage}.{key}" in VALUES:
        return VALUES[f"{stage}.{key}"]
    field = STAGES[stage].model_fields[key]
    if names := STAGES[stage].declared[key].named:
        return next(name for name in names.ours if name != field.default)
    kind: Any = field.annotation
    if isinstance(kind, UnionType) or type(None) in typing.get_args(kind):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return next(choice for choice in typing.get_args(kind) if choice != field.default)
    if kind is bool:
        return not field.default
    if kind is int:
        return (field.default or 1) + 1
    if kind is float:
        return (field.default or 1.0) / 2
    return "other"


def words_of(stage: str, key: str, value: Any) -> list[str]:
    """The command line's words for a value."""
    about = options.declared()[stage][key]
    flag = about["flag"]
    if about.get("argument"):
        return [str(value)]
    if about["kind"] == "switch":
        first, second = flag.split("/")
        on = value if isinstance(value, bool) else value == about["choices"][0]
        return [first if on else second]
    if isinstance(value, dict):
        return [word for name, one in value.items() for word in (flag, f"{name}={yaml_word(one)}")]
    return [flag, str(value)]


def yaml_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(command: str, *words: str) -> dict[str, dict[str, Any]]:
    """What the function of a command gets as settings from these words."""
    found: list[Any] = []
    real = import_module(f"prlhf_cli.{command}").command
    spied = options.Command(lambda given: found.append(given.settings), real.stages, real.sets, lambda _: None)
    spied.build(command).main([*words], prog_name=command, standalone_mode=False)
    return {stage: dict(values) for stage, values in found[0].items()}


def needed(stage: str, key: str) -> dict[str, Any]:
    """The settings beside which a key is used."""
    required = {"dataset": "demo"} if stage == "prep" and key != "dataset" else {}
    return {name: value for name, value in {**required, **WITH.get(f"{stage}.{key}", {})}.items() if name != key}


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_three_ways_to_give_a_key_and_one_result(stage: str, key: str) -> None:
    """In a recipe, by `--set` and by its own option."""
    command, model, value = command_of(stage), STAGES[stage], another_value(stage, key)
    beside = needed(stage, key)
    by_recipe = resolve(model, yaml.safe_load(yaml.safe_dump({**beside, key: value})))
    assert getattr(by_recipe, key) != model.model_fields[key].default
    argument = [] if stage != "prep" else [str(beside.get("dataset", value))]
    dotted = f"{stage}.{key}={json.dumps(value)}"
    by_set = typed(command, *argument, "--set", dotted)[stage]
    if options.declared()[stage][key].get("argument"):
        by_set = by_option = typed(command, value)[stage]
    else:
        by_option = typed(command, *argument, *words_of(stage, key, value))[stage]
    if key == "space":
        by_option = {"space": merged_space({}, by_option["space"])}
    assert resolve(model, beside, by_set) == resolve(model, beside, by_option) == by_recipe


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_every_key_is_in_the_help_of_its_command(stage: str, key: str) -> None:
    """With what it means, and its default."""
    field, about = STAGES[stage].model_fields[key], options.declared()[stage][key]
    for name in about.get("of") or STAGE_COMMANDS.get(stage, (stage,)):
        param = next(param for param in commands()[name].params if param.name == key)
        assert param.help.startswith(field.description)
        if not field.is_required():
            said = param.help.rpartition("default: ")[2].rstrip(")")
            unset = STAGES[stage].declared[key].unset
            assert said == unset if field.default is None else yaml.safe_load(said) == shown(field.default)
        text = CliRunner().invoke(app, [name, "--help"]).output
        assert " ".join(field.description.split()[:2]) in " ".join(text.split())


def shown(default: Any) -> Any:
    """A default as help shows it."""
    return "none" if default in ("", {}) else str(default) if isinstance(default, Path) else default


@pytest.mark.parametrize(("stage", "key"), KEYS)
def test_a_default_is_one_of_the_values(stage: str, key: str) -> None:
    """pydantic does not check it."""
    field = STAGES[stage].model_fields[key]
    if not field.is_required():
        kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        assert TypeAdapter(kind).validate_python(field.default) == field.default


def test_every_command_with_settings_takes_set_and_recipe() -> None:
    for name, command in commands().items():
        flags = {flag for param in command.params for flag in param.opts}
        assert ({"--set", "--recipe"} <= flags) == (name in {*STAGES, "data"}), name
    others = {"chat", "data", "runs", "export", "push", "feedback", "users", "demo", "recipes", "env"}
    assert set(COMMANDS) - set(STAGES) == others


def test_options_of_one_heading_stand_together() -> None:
    text = CliRunner().invoke(app, ["train", "--help"]).output
    headings = [line[:-1] for line in text.split("\n") if line and not line.startswith(" ") and line.endswith(":")]
    assert headings == [
        "Data and model", "User model", "Objective", "Rounds", "Adapter", "Optimizer", "Lengths", "Machine",
        "Evaluation and checkpoints", "Ray workers", "Command",
    ]  # fmt: skip
    assert text.index("User model:") < text.index("--k <int>") < text.index("Objective:") < text.index("--beta <float>")


# ---- what is typed ----


def test_an_option_wins_over_set_and_set_over_the_recipe(tmp_path: Path) -> None:
    given = typed("train", "--set", "beta=0.4", "--set", "nll=0.5", "--set", "train.nll=0.6", "--beta", "0.7")
    assert given["train"] == {"beta": 0.7, "nll": 0.6}
    assert resolve(STAGES["train"], {"beta": 0.1, "nll": 0.2, "lr": 1.0}, given["train"]).lr == 1.0


@pytest.mark.parametrize(
    ("command", "text", "stage"),
    [
        ("train", "workers=2", "cluster"),
        ("train", "cluster.workers=2", "cluster"),
        ("train", "lora-r=2", "train"),
        ("generate", "verbose=true", "cluster"),
        ("sweep", "seed=3", "train"),
        ("sweep", "sweep.seed=3", "sweep"),
        ("sweep", "generate.temperature=0", "generate"),
        ("sweep", "judge.seed=1", "judge"),
    ],
)
def test_whose_key_a_set_is(command: str, text: str, stage: str) -> None:
    given = typed(command, "--set", text)
    assert [name for name, values in given.items() if values] == [stage]


def test_a_key_of_another_command_is_unknown() -> None:
    with pytest.raises(PrlhfError, match="unknown key 'top_p' for train"):
        resolve(STAGES["train"], {}, typed("train", "--set", "top_p=0.5")["train"])


def test_a_switch_of_two_words_is_one_of_two_values() -> None:
    assert typed("prep", "tldr", "--skip-bad")["prep"] == {"dataset": "tldr", "bad_rows": "skip"}
    assert typed("prep", "tldr", "--strict")["prep"]["bad_rows"] == "strict"


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("train", ["--template-option", "a"], "--template-option a is not KEY=VALUE; write it as in --template-option"),
        ("prep", ["x", "--column", "user_id"], "--column user_id is not OURS=THEIRS; write it as in --column user_id="),
        ("judge", ["--extra-body", "=3"], "--extra-body =3 is not KEY=VALUE; write it as in --extra-body reasoning"),
        ("judge", ["--extra-body", "a=[1"], "cannot read the value of 'a=[1'"),
    ],
)
def test_entries_that_are_refused(command: str, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, [command, *words])
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_conditions_of_judging_are_those_of_the_judges() -> None:
    """Judges say which keys they read; the declarations say the same to help and documents."""
    machine = ("dataset", "device", "model", "precision", "trust_remote_code")  # of checkpoints too
    for key, about in STAGES["judge"].declared.items():
        kinds = {need.words.partition(":")[0] for need in about.used if need.key == "judge"}
        read_by = {name for name in JUDGES.ours if key in JUDGES[name].uses}
        assert kinds == (read_by if key not in machine else set()), key
