"""Every key of prep with every data set: keys that do not apply are refused, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prlhf.config import PrepConfig
from prlhf.config.names import KNOWN_DATA
from prlhf.data import config_for
from prlhf.errors import PrlhfError
from prlhf.extensions import DATA_SETS
from prlhf.recipes import resolve

CUSTOM = "some/where"
GIVEN: dict[str, Any] = {
    "top_users": 5, "simulate": "length", "minority": 0.4, "users": 3, "comparisons": 2, "noise": 0.4, "reveal": 2,
    "bad_rows": "skip", "eval_fraction": 0.2, "unseen_fraction": 0.2, "prefs": "order", "judging_users": 5,
    "text": True, "shots": 2, "concentration": 0.1, "people": "arena", "attributes": "four",
    "columns": {"id": "none"}, "split": "train", "config": "default", "revision": "main",
}  # fmt: skip
EVERYWHERE = {"dataset", "out", "seed", "source"}
# Data set -> keys that apply, written out.
USED = {
    "demo": {"users", "comparisons", "minority"},
    "demo-profiles": {"comparisons"},
    "demo-crowd": {"users", "comparisons", "noise", "reveal", "unseen_fraction"},
    "tldr": {"top_users", "simulate", "minority", "bad_rows"},
    "prism": {"prefs", "unseen_fraction", "eval_fraction", "judging_users", "bad_rows"},
    "psoups": {"eval_fraction", "text", "bad_rows"},
    "personalllm": {"users", "comparisons", "unseen_fraction", "concentration", "shots", "bad_rows"},
    "personalrewardbench": {"people", "bad_rows"},
    "ultrafeedback": {"users", "attributes", "eval_fraction", "shots", "bad_rows"},
    CUSTOM: {"bad_rows", "columns", "eval_fraction", "split", "config", "revision"},
}


def test_the_table_is_whole() -> None:
    assert set(USED) - {CUSTOM} == set(DATA_SETS) == set(KNOWN_DATA)
    assert set(GIVEN) == set(PrepConfig.model_fields) - EVERYWHERE
    assert set(GIVEN) == {key for keys in USED.values() for key in keys}


@pytest.mark.parametrize("key", GIVEN)
@pytest.mark.parametrize("name", USED)
def test_each_key_is_used_or_refused(name: str, key: str) -> None:
    values = {"dataset": name, key: GIVEN[key]} | (
        {"simulate": "length"} if (name, key) == ("tldr", "minority") else {}
    )
    if key in USED[name]:
        assert getattr(PrepConfig(**values), key) == GIVEN[key]
        return
    said = f"^{key} = .* is not used with dataset = {name}; leave {key} out, or set dataset to "
    for build in (
        lambda: PrepConfig(**values),
        lambda: config_for(name, {}, {key: GIVEN[key]}),  # typed
        lambda: config_for(name, {key: GIVEN[key]}, {}),  # in a recipe
        lambda: config_for(name, values, {}),
    ):
        with pytest.raises(PrlhfError, match=said):
            build()


def test_a_typed_default_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(PrlhfError, match=r"noise = 0.0 is not used with dataset = demo"):
        config_for("demo", {}, {"noise": 0.0, "out": tmp_path})


def test_of_a_recipe_for_other_data_counts_what_is_used() -> None:
    config = config_for("demo", {"dataset": "demo-crowd", "users": 7, "noise": 0.1}, {})
    assert config == PrepConfig(dataset="demo", users=7)


def test_a_minority_takes_simulated_users() -> None:
    with pytest.raises(PrlhfError, match=r"minority = 0.4 is not used with simulate = none; .* set simulate to length"):
        PrepConfig(dataset="tldr", minority=0.4)


def test_a_recipe_can_be_undone() -> None:
    """Both values of every switch: `--strict` after `bad_rows: skip`, `--no-preference-text` after `text: true`."""
    recipe = {"bad_rows": "skip", "text": True}
    config = resolve(PrepConfig, recipe, {"dataset": "psoups", "bad_rows": "strict", "text": False})
    assert (config.bad_rows, config.text) == ("strict", False)
