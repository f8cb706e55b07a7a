"""The results of commands and of `prlhf.api`: their JSON summaries, with names, types and units.

A summary may hold more than the fields named here; the others are in `model_extra`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """A summary. Fields that are not named are in `model_extra`."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    def summary(self) -> dict[str, Any]:
        """The JSON summary, as the command prints it with --json."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class Rate(Result):
    """A share between 0 and 1 with its 95 % bootstrap interval."""

    rate: float
    low: float
    high: float


class PreparedData(Result):
    """A prepared data set on disk."""

    folder: Path = Field(serialization_alias="out")
    source: str = Field(description="where the raw rows came from: a path or a hub id")
    kept: dict[str, int] = Field(description="comparisons in `train` and `eval`")
    users: dict[str, int] = Field(description="number of users `seen` in training, and `unseen`")
    dropped: dict[str, Any] = Field(default={}, description="number of dropped rows by reason")
    warnings: list[str] = []
    room: dict[str, Any] | None = Field(default=None, description="how the rows fit the context of `model`")
    content_hash: str = Field(description="SHA-256 of the comparisons, 64 hex digits")


class DataView(Result):
    """What is in a prepared data set, and some of its rows as training reads them."""

    dataset: str
    model: str
    context: int = Field(description="tokens that a row may have")
    comparisons: dict[str, int] = Field(description="in `train` and `eval`")
    users: list[dict[str, Any]] = Field(description="for each user `user_id`, its comparisons in `train` and `eval`")
    agreement: dict[str, Any] = Field(description="of users who chose from the same pairs: see prlhf.view.agreement")
    rows: list[dict[str, Any]] = Field(description="with `pieces`: runs of tokens that are `loss`, `cut`, or `of` both")


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
    best: dict[str, Any] | None = Field(
        default=None, description="with stop_metric: `metric`, `value` and `step` of the kept model; whether `stopped`"
    )
    pushed: str | None = Field(default=None, description="with push_to_hub: the URL of the commit on the hub")


class TrainPlan(Result):
    """What a training run would do and need."""

    run: Path
    settings: dict[str, Any] = Field(description="all keys of TrainConfig")
    device: str
    precision: str
    steps: int = Field(description="optimizer steps")
    train: int = Field(description="number of training comparisons, or demonstrations")
    eval: int = Field(description="number of held-out ones")
    read_before: int = Field(description="responses that the base reads before the first step: `user_init: choices`")
    parameters: dict[str, int] = Field(description="number of parameters by part")
    memory_gib: dict[str, float] = Field(description="memory of a worker by part, an estimate")
    missing: list[str] = Field(description="what is not there yet")


class RunSummary(Result):
    """A training run on disk, finished or not."""

    run: Path
    name: str
    state: Literal["finished", "running", "stopped"] = Field(description="a stopped one can be continued")
    objective: str
    per_user: bool = Field(description="whether it is one adapter per user")
    dataset: str
    model: str | None
    user_model: str | None
    steps: int = Field(description="optimizer steps made so far")
    best_step: int | None = Field(description="with stop_metric: the step of the kept model")
    scores: dict[str, float] = Field(description="of the last evaluation, or that of the kept model, by name")

    @property
    def score(self) -> tuple[str, float] | None:
        """The name and value of the number that stands in tables: accuracy, or nats per token."""
        names = ("accuracy_macro", "nats_per_token")
        return next(((name, self.scores[name]) for name in names if name in self.scores), None)


class RunDetails(RunSummary):
    """A training run with its settings and evaluations."""

    settings: dict[str, Any] = Field(description="those that are used, by key")
    evaluations: list[dict[str, float]] = Field(description="`step` and the numbers of each, in order")
    users: dict[str, dict[str, float | None]] = Field(description="`accuracy`, `generic` and `margin` of each user")


class RunList(Result):
    """The training runs in folders."""

    folders: list[Path]
    runs: list[RunSummary]
    faults: list[str] = Field(description="a line for each run that cannot be read")
    others: list[Path] = Field(description="what stands in the folders and holds no run")


class RunComparison(Result):
    """Training runs side by side; every list has a value for each run, None where a run has none."""

    runs: list[RunSummary]
    settings: dict[str, list[Any]] = Field(description="those that differ, by key")
    results: dict[str, list[float | None]] = Field(description="numbers of evaluations, loss and seconds, by name")


class Responses(Result):
    """Responses on disk: a file, or a folder of shards."""

    out: Path
    responses: int
    new: int = Field(description="number of responses that this call wrote")
    users: int
    tokens: int = Field(default=0, description="number of tokens that this call wrote")


class ChatSummary(Result):
    """A conversation in the terminal: how much was asked and kept."""

    run: Path
    questions: int
    kept: int = Field(description="number of choices that were appended to `choices`")
    choices: Path


class Served(Result):
    """A server that has stopped."""

    run: Path
    address: str
    tokens: int = Field(description="number of tokens that were written")


class KeptFeedback(Result):
    """Choices that a server collected, written to `out`, or removed."""

    feedback: Path = Field(description="the file that keeps them")
    choices: int
    conversations: int = Field(default=0, description="number of conversations that were removed")
    out: Path | None = None


class Talker(Result):
    """A user of whom a server keeps conversations."""

    user_id: str
    conversations: int
    last: str = Field(description="when the last one ended, UTC")


class KeptConversations(Result):
    """Conversations that a server keeps, by user."""

    feedback: Path = Field(description="the file that keeps them")
    users: list[Talker]
    out: Path | None = None


class Pushed(Result):
    """A folder on the hub."""

    folder: Path
    repo: str
    url: str = Field(description="of the commit")


class ExportedPerson(Result):
    """A user on disk, for other programs."""

    user: str
    folder: Path


class ExportComparison(Result):
    """Held-out responses, by the run and by what was written."""

    rows: int
    difference: float = Field(description="the largest difference of log-probs, nats per token")


class Exported(Result):
    """Users of a run, written for other programs."""

    run: Path
    out: Path
    format: str
    people: list[ExportedPerson]
    compared: ExportComparison | None = Field(description="with the run; None for GGUF, which only llama.cpp reads")


class WinRates(Result):
    """The win-rates of A against B by one judge, whose settings, such as its model, are in `model_extra`."""

    n_samples: int = Field(description="number of pairs with a verdict")
    n_users: int
    wins: int
    ties: int
    losses: int
    clustered_by: str = Field(description="what the bootstrap draws: `user`, or `sample` if there is one user")
    per_sample: dict[str, Rate] = Field(description="by how a tie counts: `tie_wins`, `tie_loses`, `tie_half`")
    per_user: dict[str, Rate] = Field(description="the share of users whom A wins, with more wins than losses")
    over_users: dict[str, dict[str, float | None]] = Field(description="`mean` over users and its `standard_error`")
    users: list[dict[str, Any]] = Field(description="for each user `user_id`, `n_samples`, `verdict` and `rates`")
    by_kind: dict[str, Any] = Field(description="the same for `seen`, `unseen` and `generic` users")
    significance: dict[str, Any] = Field(description="p-values of sign tests, and the number of samples needed")
    length_controlled: Rate = Field(description="per sample, if both sides wrote equally much; a tie is half a win")
    position_bias: dict[str, Any] | None = Field(description="how much the order mattered; None without an order")
    unparsed: dict[str, float] = Field(description="`pairs` without a verdict, and the rates if A had lost or won them")


class Calibration(Result):
    """How often a judge chose as people did, on held-out comparisons."""

    comparisons: int
    right: int
    wrong: int
    ties: int
    unparsed: int = Field(description="number of comparisons without a verdict")
    accuracy: Rate | None = Field(description="a tie is half right")
    accuracy_by_kind: dict[str, Rate | None]
    sign_test: float = Field(description="two-sided p-value")
    position_bias: dict[str, Any] | None


class Calibrations(Result):
    """How good the judges are, without responses to judge."""

    out: Path = Field(exclude=True)  # not a part of the summary, which lies there
    judge: str
    dataset: str
    seed: int
    settings: dict[str, dict[str, Any]] = Field(description="by judge")
    calibrated_on: str
    calibration: dict[str, Calibration] = Field(description="by judge")
    agreement: list[dict[str, Any]] = Field(default=[], description="of every two judges")


class Judgement(WinRates):
    """The win-rates of A against B by the first judge; those of each judge are in `judges` if there are several."""

    out: Path = Field(exclude=True)  # not a part of the summary, which lies there
    judge: str
    a: str
    b: str
    seed: int
    limit: int | None
    bootstrap: int = Field(description="number of resamples")
    confidence: float
    n_users_seen: int
    n_users_unseen: int
    unpaired_a: int = Field(description="number of responses of A without a partner")
    unpaired_b: int
    generic_for_a: int = Field(description="number of pairs in which A's generic response stands in")
    generic_for_b: int
    judges: dict[str, WinRates] = {}
    agreement: list[dict[str, Any]] = Field(default=[], description="of every two judges")
    calibrated_on: str | None = None
    calibration: dict[str, Calibration] = Field(default={}, description="by judge")

    @property
    def by_judge(self) -> dict[str, WinRates]:
        """The win-rates by each judge."""
        return self.judges or {self.judge: self}


class CheckpointAccuracy(Accuracy):
    """How often a run ranks held-out comparisons as their users did."""

    out: Path = Field(exclude=True)  # not a part of the summary, which lies there
    run: str
    dataset: str
    seed: int
    left_out: dict[str, int] = Field(description="number of comparisons that are `too_long`, or `equal`")
    readings: dict[str, Rate | None] = Field(description="accuracy as `seen`, `unseen`, `generic`, `shuffled` users")


class FewShot(Result):
    """Accuracy on other choices of unseen users after some of their choices; means over users."""

    choices: int = Field(description="number of choices that each user was learned from, at most")
    readings: dict[str, Rate] = Field(
        description="accuracy as the `generic` user, `adapted`; after another user's choices (`shuffled`); after the "
        "user's own with chosen and rejected exchanged (`flipped`); and of baselines"
    )
    gain: Rate = Field(description="accuracy when adapted less that of the generic user")
    turned_over: Rate = Field(description="share of choices that are ranked the other way after flipped ones")
    told_apart: dict[str, int] = Field(description="number of users of whom `adapt` says `yes`, `no` or `unsure`")


class FewShotAccuracy(Result):
    """How well a run ranks choices of unseen users after it learned them from a few others."""

    out: Path = Field(exclude=True)  # not a part of the summary, which lies there
    run: str
    dataset: str
    seed: int
    users: int = Field(description="number of unseen users with enough choices")
    comparisons: int = Field(description="number of choices that are tested")
    by_choices: list[FewShot]


class GeneralAbility(Result):
    """What personalization costs in general ability: accuracy on multiple choice, and perplexity on texts.

    Each reading has `acc`, `acc_norm`, or `perplexity`, `bits_per_byte`, `byte_perplexity` and `word_perplexity`, where
    there are items of that kind, each with `value`, `low` and `high` (95 % bootstrap over items). `against_base` and
    `against_generic` have the differences.
    """

    out: Path = Field(exclude=True)  # not a part of the summary, which lies there
    run: str
    general: str = Field(description="the file of questions and texts")
    base: str
    seed: int
    questions: int
    texts: int
    left_out: int = Field(description="number of items that do not fit")
    chance: float | None = Field(description="the accuracy of a random choice")
    readings: dict[str, dict[str, Any]] = Field(description="of the `base`, as `generic` user, and the mean of `users`")
    by_user: dict[str, dict[str, Any]]


class AdaptedUser(Result):
    """What is known of a user who was learned from choices."""

    user_id: str
    user_index: int
    new: bool = Field(description="whether the user was not trained")
    choices: int = Field(description="number of choices that the user was learned from")
    told_apart: Literal["yes", "no", "unsure"] = Field(
        description="whether the choices are better explained by the user than by the generic user; `no`: they are not"
    )
    gain: float = Field(description="log evidence of the user over that of the generic user, nats")
    uncertainty: float = Field(description="what is left to learn: 1 before any choice, 0 if the user is known exactly")


class Adapted(Result):
    """Users who were learned from choices, and written into a run."""

    run: Path
    users: list[AdaptedUser]
    choices: int = Field(description="number of choices that were not known before")
    passes: int = Field(description="choices that were read, each by a forward and a backward pass")
    seconds: dict[str, float] = Field(description="for `load` of the model, `prior`, `learn` and `write`")


class Asked(Adapted):
    """A user who was asked, and learned from the answers; without an answer there are no `users`."""

    answers: Path = Field(description="file of choices")
    asked: int = Field(description="number of questions that were answered, ties included")
    ended: Literal["sure", "no questions left", "stopped"]
    information: float | None = Field(description="what the best question left is expected to tell, nats")
    pairs: int = Field(description="number of pairs that there were to ask about")
    agrees: float | None = Field(description="share of the user's choices that the learned user would make, 0 to 1")
    agreed_before: float | None = Field(description="the same before anything was learned")
    changed: float | None = Field(description="share of the pairs in which the learned user would choose otherwise")


class Forgotten(Result):
    """A user who was removed from a run."""

    run: Path
    forgotten: str
    user_index: int | None = Field(description="which stays empty; None: the model did not know the user")


class UserVersion(Result):
    """What an adapted user is, or was before."""

    version: int = Field(description="0: before any choice")
    at: str | None = Field(description="when it was learned, UTC; None if that is not known")
    choices: int


class RolledBack(UserVersion):
    """A user who is again what a former version was."""

    run: Path
    user_id: str
    user_index: int
    undone: int = Field(description="number of choices that left the model")


class RunUsers(Result):
    """The users of a run, or one of them."""

    run: Path
    trained: int = Field(description="number of users from training who were not adapted")
    forgotten: int = Field(description="number of user indices that are empty")
    adapted: list[AdaptedUser]
    versions: list[UserVersion] = Field(default=[], description="of the one user who was asked for; the present last")


class CostEstimate(Result):
    """What judging would send and cost. Numbers of tokens are estimates."""

    model: str
    server: str
    protocol: str
    pairs: int
    calls: int = Field(description="number of requests whose answer is not cached")
    known: int = Field(description="number of requests whose answer is cached")
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = Field(description="US dollars; None if the price is not known")
    cost_at_most: float | None = Field(description="US dollars, if each answer has the most tokens")


class JudgingPlan(Result):
    """What judging would send and cost, for each judge that asks a server."""

    plan: list[CostEstimate]


class ShownCall(Result):
    """A call that would be made."""

    order: str = Field(description="`ab`: A's response stands first")
    messages: list[dict[str, str]]


class JudgeMessages(Result):
    """The calls that would be made about one comparison."""

    calls: list[ShownCall]


class Trials(Result):
    """A finished sweep."""

    out: Path
    metric: str
    mode: str
    best: dict[str, Any] = Field(description="`trial`, `point` (its settings) and `value` of the metric")
    trials: list[dict[str, Any]]


# ---- the demo ----

Kind = Literal["user", "minority", "generic", "vanilla", "base"]


@dataclass(frozen=True)
class FigureRow:
    """One bar of Figure 3, and the other columns of its row in the table."""

    label: str
    kind: Kind
    words: float  # mean words per response
    standard_error: float
    well_formed: float  # share of responses
    faithful: float  # share that is well-formed and faithful to the post
    empty: int  # number of responses without text
    accuracy: float | None  # implicit-reward accuracy on the user's held-out comparisons
    vanilla_accuracy: float | None  # accuracy of vanilla DPO on the same


@dataclass(frozen=True)
class DemoCheck:
    """An expected result of the demo and its measured value."""

    name: str
    value: float
    target: str
    met: bool


class DemoFigure(Result):
    """Figure 3 of the paper in miniature."""

    figure: str = Field(description="path of the picture")
    rows: list[FigureRow]
    quick: bool = Field(description="whether too little was trained for checks")
    checks: list[DemoCheck]
    nll: float = Field(description="weight of the NLL term of P-DPO")
    train_seconds: dict[str, float] = Field(description="of the `personalized` and the `vanilla` run")


# ---- the installation ----


class ShippedRecipe(Result):
    """A recipe that comes with prlhf."""

    name: str
    command: str = Field(description="that runs it")
    about: str


class System(Result):
    """The machine and its Python."""

    platform: str
    python: str = Field(description="path of the interpreter")
    cpu: str
    cores: int | None = Field(description="number of cores that this process may use")
    memory_gib: float | None


class Device(Result):
    """A GPU that PyTorch can use."""

    name: str
    memory_gib: float


class CacheFolder(Result):
    """A folder of caches, and the free space on its disk."""

    path: str
    exists: bool
    writable: bool
    free_gib: float


class Environment(Result):
    """What a bug report needs."""

    versions: dict[str, str | None] = Field(description="by package; None if it is not installed")
    system: System
    devices: list[Device]
    folders: dict[str, CacheFolder]
    variables: dict[str, str] = Field(description="of the environment; `set` in place of a secret")
