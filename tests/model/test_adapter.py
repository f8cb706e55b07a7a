"""Which layers `lora_targets` names; and that none of its names is passed over in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf.errors import PrlhfError
from prlhf.model.base import load_base, make_trainable

MakeConfig = Callable[..., Any]


def layers(tiny_base: Path, config: Any) -> set[str]:
    lm = make_trainable(load_base(str(tiny_base)).lm, config)
    return {name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in lm.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("q_proj,v_proj", {"q_proj", "v_proj"}),
        (" q_proj , v_proj,", {"q_proj", "v_proj"}),
        ("self_attn.q_proj", {"q_proj"}),
        (" all-linear ", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_names(tiny_base: Path, tmp_path: Path, make_config: MakeConfig, targets: str, expected: set[str]) -> None:
    assert layers(tiny_base, make_config(tmp_path, lora_targets=targets)) == expected


def test_nothing_is_said_about_names_within_peft(tiny_base: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """A session in Python shows FutureWarnings of others, which its user cannot fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        layers(tiny_base, make_config(tmp_path))


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ("q_proj,vproj", "'vproj' fits no layer of the model; did you mean 'v_proj'"),
        ("query", "'query' fits no layer of the model; known: "),
        ("", "lora_targets = '': '' fits no layer"),
        (" , ", "fits no layer"),
        (".*attn.*", "'.*attn.*' fits no layer"),
        ("q_proj,users.offsets", "'users.offsets' fits no layer"),
        ("all-linear,q_proj", "'all-linear' fits no layer"),
        ("proj", "'proj' fits no layer"),
        ("q_proj,input_layernorm", "fits no layer"),
    ],
)
def test_an_unknown_name(tiny_base: Path, tmp_path: Path, make_config: MakeConfig, targets: str, said: str) -> None:
    with pytest.raises(PrlhfError) as error:
        layers(tiny_base, make_config(tmp_path, lora_targets=targets))
    assert said in str(error.value)
    assert "--set lora_targets=all-linear" in str(error.value)
