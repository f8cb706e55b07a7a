"""What the commands return from Python: the numbers of their JSON summaries, with names, types and units.

Fields that are not named here are kept under their names in the summary, so nothing that a command reports is lost.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """A summary; what it has besides the named fields is in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Rate(Result):
    """A share between 0 and 1 with its 95 % bootstrap interval."""

    rate: float
    low: float
    high: float


class PreparedData(Result):
    """A prepared data set on disk."""

    folder: Path
    source: str = Field(description="where the raw rows came from")
    kept: dict[str, int] = Field(description="comparisons in `train` and `eval`")
    users: dict[str, int] = Field(description="how many users are `seen` in training, and `unseen`")
    dropped: dict[str, Any] = Field(default={}, description="rows that were dropped, by reason")
    warnings: list[str] = []
    content_hash: str = Field(description="SHA-256 of the comparisons, 64 hex digits")


class Accuracy(Result):
    """How often the (implicit) reward of the chosen response is the higher one, on held-out comparisons; 0 to 1."""

    accuracy_macro: float | None = Field(description="mean over users")
    accuracy_generic: float | None = Field(description="the same comparisons, read as the generic user")
    accuracy_by_user: dict[str, float]
    margin_by_user: dict[str, float] = Field(description="mean of reward(chosen) - reward(rejected)")
    generic_by_user: dict[str, float | None]


class Run(Result):
    """A finished training run on disk."""

    run: Path
    objective: str
    dataset: str
    model: str | None = Field(description="the base: hub id, folder, GGUF file or `tiny`")
    steps: int = Field(description="optimizer steps")
    loss: float | None = Field(description="mean training loss over all steps, nats")
    train_seconds: float
    eval: Accuracy | dict[str, Any] | None = Field(default=None, description="on the held-out part, where there is one")


class Responses(Result):
    """Responses on disk: a file, or a folder of shards."""

    out: Path
    responses: int
    new: int = Field(description="of them written now and not by an earlier call")
    users: int
    tokens: int = Field(default=0, description="tokens written now")


class Judgement(Result):
    """Win-rates of A against B."""

    out: Path
    judge: str
    wins: int
    ties: int
    losses: int
    per_sample: dict[str, Rate] = Field(description="by what a tie counts: `tie_wins`, `tie_loses`, `tie_half`")
    per_user: dict[str, Rate]


class Trials(Result):
    """A finished sweep."""

    out: Path
    metric: str
    mode: str
    best: dict[str, Any] = Field(description="`trial`, `point` (its settings) and `value` of the metric")
    trials: list[dict[str, Any]]
