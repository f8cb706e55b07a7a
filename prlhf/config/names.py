"""The names that settings choose from. A new data set, user model, loss or baseline is named here."""

from __future__ import annotations

from typing import Literal

from prlhf.extensions import DATA_SETS

KNOWN_DATA = tuple(DATA_SETS.ours)
DEMO_DATASETS = ("demo", "demo-profiles", "demo-crowd")  # data sets whose default base is the bundled tiny model
HUB_DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

UserModelName = Literal["uniform", "individual", "cluster"]
LossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "exo_pair", "hinge", "ipo", "sppo_hard", "nca_pair", "apo_zero", "apo_down",
    "discopop",
]  # fmt: skip
SMOOTHED_LOSSES = ("sigmoid", "sigmoid_norm", "robust", "exo_pair")  # those that read label_smoothing
BaselineName = Literal["none", "base", "oracle", "in-context", "chosen"]
