"""The names that settings choose from. A new user model, loss or baseline is named here; data sets are registered."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Literal

from prlhf.extensions import DATA_SETS

KNOWN_DATA = tuple(DATA_SETS.ours)
HUB_DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

UserModelName = Literal["uniform", "individual", "cluster"]
LossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "exo_pair", "hinge", "ipo", "sppo_hard", "nca_pair", "apo_zero", "apo_down",
    "discopop",
]  # fmt: skip
SMOOTHED_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")  # those that read label_smoothing
PROMPTS = resources.files("prlhf") / "judge" / "prompts"  # NAME.jinja is a protocol, _NAME.jinja a part of others
PROTOCOLS = tuple(
    sorted(one.name[:-6] for one in PROMPTS.iterdir() if one.name[0] != "_" and one.name[-6:] == ".jinja")
)
if TYPE_CHECKING:
    ProtocolName = str
else:
    ProtocolName = Literal[PROTOCOLS]
BaselineName = Literal["none", "base", "oracle", "in-context", "chosen"]
