"""The results of the functions in `prlhf.api`: the commands' JSON summaries, with names, types and units.

A summary may hold more than the fields named here; the others are in `model_extra`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """A summary. Fields that are not named are in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Rate(Result):
    """A share between 0 and 1 with its 95 % bootstrap interval."""

    rate: float
    low: float
    high: float


class PreparedData(Result):
    """A prepared data set on disk."""

    folder: Path
    source: str = Field(description="where the raw rows came from: a path or a hub id")
    kept: dict[str, int] = Field(description="comparisons in `train` and `eval`")
    users: dict[str, int] = Field(description="number of users `seen` in training, and `unseen`")
    dropped: dict[str, Any] = Field(default={}, description="number of dropped rows by reason")
    warnings: list[str] = []
    content_hash: str = Field(description="SHA-256 of the comparisons, 64 hex digits")


class Accuracy(Result):
    """How often the chosen response has the higher (implicit) reward, on held-out comparisons; 0 to 1."""

    accuracy_macro: float | None = Field(description="mean over users")
    accuracy_generic: float | None = Field(description="the same comparisons as the generic user")
    accuracy_by_user: dict[str, float]
    margin_by_user: dict[str, float] = Field(description="mean of reward(chosen) - reward(rejected)")
    generic_by_user: dict[str, float | None]


class Run(Result):
    """A finished training run on disk."""

    run: Path
    objective: str
    dataset: str
    model: str | None = Field(description="the base model: hub id, folder, GGUF file or `tiny`")
    steps: int = Field(description="optimizer steps")
    loss: float | None = Field(description="mean training loss over all steps, nats")
    train_seconds: float
    eval: Accuracy | dict[str, Any] | None = Field(default=None, description="on held-out comparisons, if any")


class Responses(Result):
    """Responses on disk: a file, or a folder of shards."""

    out: Path
    responses: int
    new: int = Field(description="number of responses that this call wrote")
    users: int
    tokens: int = Field(default=0, description="number of tokens that this call wrote")


class Judgement(Result):
    """The win-rates of A against B."""

    out: Path
    judge: str
    wins: int
    ties: int
    losses: int
    per_sample: dict[str, Rate] = Field(description="by how a tie counts: `tie_wins`, `tie_loses`, `tie_half`")
    per_user: dict[str, Rate]


class Trials(Result):
    """A finished sweep."""

    out: Path
    metric: str
    mode: str
    best: dict[str, Any] = Field(description="`trial`, `point` (its settings) and `value` of the metric")
    trials: list[dict[str, Any]]
