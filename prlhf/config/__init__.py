"""All settings: a pydantic model per stage. Every key is declared once, in the module of its stage.

Type, default, bounds, meaning, option, heading and the conditions under which a key is used stand in its declaration
(see `keys`); options, `--help`, docs/SETTINGS.md and the JSON schema of recipes are made from it.
"""

from __future__ import annotations

from prlhf.config.adapt import AdaptConfig
from prlhf.config.cluster import ClusterConfig
from prlhf.config.generate import GenerateConfig
from prlhf.config.judge import JudgeConfig
from prlhf.config.prep import PrepConfig
from prlhf.config.serve import ServeConfig
from prlhf.config.stage import SAVED, Stage
from prlhf.config.sweep import SweepConfig
from prlhf.config.train import TrainConfig

__all__ = [
    "SAVED",
    "STAGES",
    "AdaptConfig",
    "ClusterConfig",
    "GenerateConfig",
    "JudgeConfig",
    "PrepConfig",
    "ServeConfig",
    "Stage",
    "SweepConfig",
    "TrainConfig",
]

STAGES: dict[str, type[Stage]] = {
    "prep": PrepConfig,
    "train": TrainConfig,
    "adapt": AdaptConfig,
    "generate": GenerateConfig,
    "serve": ServeConfig,
    "judge": JudgeConfig,
    "cluster": ClusterConfig,
    "sweep": SweepConfig,
}
