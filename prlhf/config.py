"""One pydantic model per stage, recipe files with one section per stage, and overrides.

A value comes from, in rising order: the default, the recipe, `--set key=value`, the flag of its own.
Unknown keys are refused with the nearest known name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)  # fmt: skip

from prlhf.applies import GENERATE, PREP, SWEEP, TRAIN, Used, refusal, unused
from prlhf.errors import PrlhfError, nearest, one_line
from prlhf.files import at_home
from prlhf.parse import yaml_value
from prlhf.refusals import explain, unknown_key

DEMO_DATASETS = ("demo", "demo-profiles", "demo-crowd")  # data sets whose default base is the bundled tiny model
SAVED = "saved"  # context of a validation: by our own hand, so keys that are not used may be there
HUB_DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

LossName = Literal[
    "sigmoid", "sigmoid_norm", "robust", "exo_pair", "hinge", "ipo", "sppo_hard", "nca_pair", "apo_zero", "apo_down",
    "discopop",
]  # fmt: skip


def cache_folder() -> Path:
    """Where what is worth keeping between runs lies: $PRLHF_CACHE, or ~/.cache/prlhf."""
    return Path(os.environ.get("PRLHF_CACHE", Path.home() / ".cache" / "prlhf"))


def default_name(dataset: str) -> str:
    """A folder's name for a data set: ORG-NAME of a hub id, NAME of a folder, NAME-csv of a file NAME.csv."""
    path = Path(os.path.expandvars(dataset)).expanduser()
    if path.is_file():
        return path.name.lstrip(".").replace(".", "-")
    if path.exists() or dataset.count("/") != 1:
        return path.resolve().name or "root"
    return dataset.replace("/", "-")


def expanded(values: Any) -> Any:
    """Settings with the home folder filled in, wherever a path begins with `~/` or `$HOME/`."""
    if not isinstance(values, Mapping):
        return values
    paths = {key: at_home(str(value)) for key, value in values.items() if isinstance(value, str | Path)}
    return {**values, **{key: path for key, path in paths.items() if path != str(values[key])}}


class Stage(BaseModel):
    """What all stages' settings share. However they come in, what is wrong with them is a PrlhfError."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    used: ClassVar[Mapping[str, Used]] = {}  # when its keys are used; those that are not there: always

    @model_validator(mode="wrap")
    @classmethod
    def refuse(cls, values: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Turn pydantic's errors into ours, and refuse what is given and not used."""
        try:
            config = build(expanded(values))
        except ValidationError as error:
            raise PrlhfError(*explain(cls, error)) from error
        given = {} if values is config or info.context == SAVED else config.given()
        for key, need in unused(cls.used, config, given).items():
            raise PrlhfError(*refusal(key, need, config, given[key]))
        return config

    def given(self) -> dict[str, Any]:
        """What differs from its default."""
        values = {key: (getattr(self, key), field.default) for key, field in type(self).model_fields.items()}
        return {key: value for key, (value, default) in values.items() if value != default}

    @classmethod
    def saved(cls, values: Any) -> Self:
        """A config from what was saved of one: what is not used, which earlier versions kept, is left out."""
        return cls.model_validate(values, context=SAVED).without_unused()

    def without_unused(self) -> Self:
        """The same with the defaults of all keys that are not used."""
        keys = unused(self.used, self, self.given())
        return self.model_copy(update={key: type(self).model_fields[key].default for key in keys})


class PrepConfig(Stage):
    """`prlhf prep`: raw data to a prepared data set."""

    used = PREP

    dataset: str  # a known name, or the path or hub id of custom data
    out: Path | None = None  # default: data/NAME
    source: str | None = None  # local folder or file of the raw data; default: the hub
    seed: int = 0
    top_users: int = Field(10, ge=1)  # tldr: how many of the most active workers to keep
    simulate: Literal["none", "length"] = "none"  # tldr: replace the workers' choices by simulated ones
    minority: float = Field(0.3, ge=0, le=1)  # share of users that prefer the shorter text
    users: int | None = Field(None, ge=1, le=1_000_000)  # demo: how many (default: 10; demo-crowd: 1500)
    comparisons: int | None = Field(None, ge=1, le=1_000_000)  # demos: per user (default: 300; demo-crowd: 8)
    noise: float = Field(0.0, ge=0, lt=0.5)  # demo-crowd: share of training choices turned around
    reveal: int = Field(1, ge=0, le=3)  # demo-crowd: how many of three dimensions of taste the text about a user tells
    bad_rows: Literal["strict", "skip"] = "strict"  # malformed rows: stop before writing, or drop and count
    eval_fraction: float = Field(0.1, ge=0, lt=1)  # share held out: of prompts; prism: of a user's dialogues
    unseen_fraction: float = Field(0.1, ge=0, lt=1)  # prism, demo-crowd: share of users kept out of training
    prefs: Literal["ratings", "order"] = "ratings"  # prism: top preferences by rating, or as the released code has them
    judging_users: int = Field(25, ge=0)  # prism: how many seen, and how many unseen, users to select for judging
    text: bool = False  # psoups: give users their true preference as text
    columns: dict[str, str] = {}  # custom: our column name -> the file's; none: leave the file's column alone
    split: str | None = None  # custom: the split to train on, or TRAIN,EVAL; default: train, and eval or test
    config: str | None = None  # custom: the hub data set's configuration, or the folder within the folder
    revision: str | None = None  # custom, from the hub: a branch, tag or commit

    @property
    def folder(self) -> Path:
        """The folder to write: `out`, or data/NAME."""
        return self.out or Path("data") / default_name(self.dataset)


class TrainConfig(Stage):
    """`prlhf train`: a prepared data set and a base model to a personalized policy, or reward model."""

    used = TRAIN

    dataset: str = "demo"  # a known name (prepared on first use) or the folder of a prepared data set
    out: Path | None = None  # run folder; default: runs/DATASET-USERMODEL
    model: str | None = None  # hub id, folder or GGUF file; default: tiny base for demo sets, else SmolLM2-135M
    trust_remote_code: bool = False
    seed: int = 0

    # The user model (section 4.3)
    user_model: Literal["uniform", "individual", "cluster"] = "individual"
    k: int = Field(10, ge=1)  # cluster: number of clusters K
    user_tokens: int = Field(10, ge=0)  # T_u: soft-prompt vectors per user
    user_init: Literal["zero", "vocabulary", "random"] = "vocabulary"  # how users' embeddings start
    cluster_weights: Literal["softmax", "linear"] = "softmax"  # softmax: the released code; linear: V.w as written
    user_text: bool = True  # prepend the text about the user, where there is any

    # The objective (section 4.4)
    objective: Literal["dpo", "rm", "sft"] = "dpo"  # rm: a reward model; sft: supervised, without users
    loss: LossName = "sigmoid"  # dpo: what stands in place of log-sigmoid
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # assumed share of flipped preferences
    alpha: float = Field(0.5, ge=0, le=1)  # weight of the term with the user's id; 1 - alpha: the generic user's
    beta: float = Field(0.1, gt=0)  # dpo
    nll: float = Field(0.5, ge=0)  # dpo: weight of the NLL per chosen token in both terms; 0: as published

    # The adapter
    full_finetune: bool = False  # train all weights of the base instead of a LoRA adapter
    lora_r: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: str = "all-linear"  # or module names, separated by commas

    # The optimizer
    lr: float = Field(1e-4, gt=0)
    cluster_lr: float = Field(5e-2, gt=0)  # cluster: of the users' weights w_i, which are logits and not embeddings
    user_lr: float = Field(5e-3, gt=0)  # of the user model (and a reward model's head); they have no weight decay
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(10, ge=0)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)  # stop after this many optimizer steps, whatever the epochs
    batch_size: int = Field(8, ge=1)  # comparisons per forward pass
    accumulation: int = Field(1, ge=1)  # forward passes per optimizer step
    max_grad_norm: float = Field(1.0, gt=0)

    # Lengths, in tokens
    max_tokens: int | None = Field(None, ge=8)  # user tokens + text + prompt + response; default: the model's context
    max_prompt_tokens: int | None = Field(None, ge=1)  # longer prompts lose their beginning; default: refuse
    skip_long: bool = False  # leave out and count the comparisons that do not fit; default: refuse
    template_options: dict[str, Any] = {}  # variables of the chat template, such as {enable_thinking: false}

    # The machine
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    prefix_tree: bool = True  # read what responses have in common once; false: a padded row for each response
    pack_tokens: int | None = Field(None, ge=1)  # tokens per forward pass; default: 1024 on a CPU, 16384 on a GPU
    group_by_prompt: bool = False  # comparisons of one prompt go into one batch, where the tree shares the prompt
    reference_cache: bool = True  # dpo: keep the base's log-probs on disk, for all runs on this base
    reference_first: bool = False  # dpo: compute them all before the first step; full_finetune does so anyway

    # Following the run
    eval_every: int = Field(0, ge=0)  # optimizer steps between evaluations; 0: only at the end
    eval_limit: int | None = Field(None, ge=1)  # at most this many held-out comparisons per evaluation
    save_every: int = Field(50, ge=1)  # optimizer steps between checkpoints
    keep_checkpoints: int = Field(2, ge=1)
    report_to: str = "none"  # passed through to transformers: tensorboard, wandb, ...

    @model_validator(mode="after")
    def personalized_needs_tokens(self) -> TrainConfig:
        """Refuse a user model that would have no parameters."""
        if self.objective != "sft" and self.user_model != "uniform" and self.user_tokens == 0:
            raise PrlhfError(
                f"user_tokens = 0 leaves user_model = {self.user_model} without any parameter",
                "set user_tokens to 1 or more, or user_model to uniform",
            )
        return self

    @model_validator(mode="after")
    def loss_fits(self) -> TrainConfig:
        """Refuse a loss that would be infinite."""
        if self.objective == "dpo" and self.loss == "exo_pair" and not self.label_smoothing:
            raise PrlhfError("label_smoothing = 0 makes loss = exo_pair infinite", "set it to 0.001, as its paper does")
        return self

    @property
    def folder(self) -> Path:
        """The folder of the run: `out`, or runs/DATASET-MODEL."""
        what = {"dpo": self.user_model, "rm": f"rm-{self.user_model}", "sft": "sft"}[self.objective]
        return self.out or Path("runs") / f"{Path(self.dataset).name}-{what}"


class GenerateConfig(Stage):
    """`prlhf generate`: responses, one row per (prompt, user)."""

    used = GENERATE

    prompts: str = "eval"  # eval: held-out prompts; own: each user's own of them; judging: its pairs; or a file
    prompt_column: str = "prompt"  # the column of a file of prompts that holds them
    users: str = "all"  # all, seen, unseen, generic, and ids, separated by commas
    out: Path = Path("responses.jsonl")
    dataset: str | None = None  # where eval, own and judging come from; default: what the run was trained on
    unknown_as_generic: bool = False  # serve unknown ids as the generic user
    baseline: Literal["none", "base", "oracle", "in-context", "chosen"] = "none"  # adapter and user tokens off
    examples: int = Field(4, ge=1)  # in-context: how many of the user's own choices to show
    model: str | None = None  # where the run's base model is now, if it has moved; a baseline's base without a run
    trust_remote_code: bool = False
    max_new_tokens: int = Field(128, ge=1)
    max_prompts: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    temperature: float = Field(1.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = 0
    skip_long: bool = False  # leave out and count the prompts that do not fit; default: refuse
    template_options: dict[str, Any] = {}  # variables of the chat template, over those of the run
    best_of: int = Field(1, ge=1)  # candidates per (prompt, user), of which the one with the highest reward stays
    reward: Path | None = None  # best_of: the run that gives rewards, a reward model or a policy (implicit rewards)
    block: int = Field(256, ge=1)  # responses a shard holds; with workers, also the most one takes at a time
    shards: Literal["parquet", "jsonl"] | None = (
        None  # out is a folder of shards; default: parquet, if out has no ending
    )
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def best_of_has_a_choice(self) -> GenerateConfig:
        """Refuse best-of-N without a reward, or with only one candidate to choose from."""
        if self.reward is None and self.best_of > 1:
            raise PrlhfError(f"best_of = {self.best_of} has no reward to choose by", "add --reward RUN")
        if self.reward is not None and self.best_of == 1:
            raise PrlhfError(f"reward = {self.reward} has nothing to choose from", "add --best-of N, N at least 2")
        if self.best_of > 1 and (self.temperature == 0 or self.baseline == "chosen"):
            why = "baseline = chosen" if self.baseline == "chosen" else "temperature = 0"
            raise PrlhfError(f"best_of = {self.best_of} with {why} has but equal responses", "drop one of the two")
        return self


class JudgeConfig(Stage):
    """`prlhf judge`: win-rates between two sets of responses, or a checkpoint's accuracy on held-out comparisons."""

    judge: str | None = None  # rule:shorter, rule:longer, reward:RUN, oracle:DATASET, llm[:MODEL]; several by commas
    out: Path = Path("judged")
    bootstrap: int = Field(2000, ge=1)  # resamples of the interval
    seed: int = 0  # of the bootstrap, of random orders, and of what is drawn with `limit`
    batch_size: int = Field(16, ge=1)
    model: str | None = None  # where the run's base model is now, if it has moved
    trust_remote_code: bool = False
    device: str = "auto"
    dataset: Path | None = None  # prepared data that says who the users are, for judges that ask; also of --checkpoint
    skip_long: bool = False  # of --checkpoint: leave out and count the comparisons that do not fit; default: refuse
    calibrate: Path | None = None  # prepared data on whose held-out comparisons the judge itself is judged
    limit: int | None = Field(None, ge=1)  # pairs to judge at most, and to calibrate on, drawn by the seed

    # llm: a language model as the judge
    judge_model: str | None = None  # the server's name for it
    base_url: str | None = None  # of an OpenAI-compatible server; default: $OPENAI_BASE_URL, else OpenAI's
    api_version: str | None = None  # Azure: the version of its API; base_url is the resource, judge_model a deployment
    protocol: Literal["role-play", "profile", "plain"] | None = None  # default: what makes most of the data set
    prompt: Path | None = None  # Jinja file in place of the protocol's own
    order: Literal["both", "random", "ab"] = "both"  # which response stands first
    temperature: float = Field(0.0, ge=0, le=2)
    max_answer_tokens: int = Field(300, ge=1)  # thoughts included
    raised_answer_tokens: int | None = Field(None, ge=1)  # an answer that was cut off is asked for once more with this
    # many; default: 4 times max_answer_tokens, and 4096 at least
    extra_body: dict[str, Any] = {}  # further parameters of the request, such as reasoning_effort
    leave_out: str = ""  # what the server does not take, by commas: seed, response_format, ...
    concurrency: int = Field(8, ge=1)  # calls at a time
    requests_per_minute: float | None = Field(None, gt=0)
    timeout: float = Field(120.0, gt=0)  # seconds a call may take
    retries: int = Field(6, ge=0)  # of a call that a busy or broken server did not answer
    backoff: float = Field(1.0, ge=0)  # seconds before the first retry; doubles, with jitter
    max_wait: float = Field(300.0, ge=0)  # seconds a server may ask to wait; if it asks for more, the run stops
    prices: Path | None = None  # YAML; default: the shipped prices.yaml
    max_cost: float | None = Field(None, ge=0)  # US dollars, for the calls of this run
    max_calls: int | None = Field(None, ge=0)
    batch: bool = False  # by the provider's Batch API
    batch_poll: float = Field(30.0, ge=0)  # seconds between two looks at a batch


class ClusterConfig(Stage):
    """Where a stage runs: in this process, or by Ray on `workers` processes of one machine or of many.

    Nothing here changes what comes out, but for rounding.
    """

    workers: int = Field(0, ge=0)  # Ray workers; 0: this process, without Ray
    gpus_per_worker: float | None = Field(None, ge=0)  # default: 1 where the cluster has GPUs, else none
    cpus_per_worker: float = Field(1, gt=0)
    ray_address: str | None = None  # auto, HOST:PORT or ray://HOST:PORT of a running cluster; default: start one here
    storage: str | None = None  # folder or s3://… that all machines reach, for checkpoints; default: the run folder
    parallel: Literal["ddp", "fsdp"] = "ddp"  # train: every worker has the whole model, or a shard of it
    max_failures: int = Field(3, ge=0)  # train: how many lost workers a run goes on after
    silence_minutes: float = Field(60, ge=0)  # train: a run whose workers say nothing for so long is ended; 0: never
    verbose: bool = False  # show Ray's own messages


class SweepConfig(Stage):
    """`prlhf sweep`: many trials of `train`, or of train, generate and judge, over a space of settings."""

    used = SWEEP

    space: dict[str, Any] = {}  # key -> "0.1:0.9", "1e-5:1e-3:log", "1,5,10" or a list; a train key, or generate.KEY
    out: Path = Path("sweep")
    trials: int | None = Field(None, ge=1)  # how many points to sample; default: the whole grid
    search: Literal["grid", "random", "optuna"] | None = None  # default: random where `trials` is given, else grid
    metric: str = "eval/accuracy_macro"  # judge/NAME: by generating and judging at the end of a trial
    mode: Literal["max", "min"] = "max"
    seed: int = 0  # of the sampled points; the trials' own is train.seed
    against: str = "base"  # judge/NAME: the responses to win against: the base's, or a file of `prlhf generate`
    asha: bool = False  # stop trials that are behind at an evaluation (see train.eval_every)
    grace: int | None = Field(None, ge=1)  # asha: steps before the first look at a trial; default: eval_every
    reduction: float = Field(3, gt=1)  # asha: the best 1 in this many go on, with as many times more steps
    concurrent: int | None = Field(None, ge=1)  # trials at a time; default: as many as the cluster has room for


STAGES: dict[str, type[Stage]] = {
    "prep": PrepConfig,
    "train": TrainConfig,
    "generate": GenerateConfig,
    "judge": JudgeConfig,
    "cluster": ClusterConfig,
    "sweep": SweepConfig,
}
S = TypeVar("S", bound=Stage)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with prlhf, by name: in the package when installed, beside it in a checkout."""
    here = Path(__file__).parent
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path | None) -> dict[str, dict[str, Any]]:
    """Read a recipe, a file or a shipped one's name: a mapping of stage names to that stage's keys.

    None is the empty recipe. Values are checked when a stage is resolved.
    """
    if recipe is None:
        return {}
    path = shipped_recipes().get(str(recipe), Path(at_home(str(recipe))))
    try:
        loaded = yaml_value(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise PrlhfError(
            f"no recipe at {path}", f"give a file, or a shipped one: {nearest(str(recipe), shipped_recipes())}"
        ) from error
    except (ValueError, OSError) as error:
        raise PrlhfError(f"cannot read recipe {path}: {one_line(error)}", "fix the YAML") from error
    if not isinstance(loaded, dict):
        raise PrlhfError(f"recipe {path} holds no sections", f"use the sections {', '.join(STAGES)}")
    for section, values in loaded.items():
        if section not in STAGES:
            raise PrlhfError(f"recipe {path} has an unknown section '{section}'", nearest(str(section), STAGES))
        if not isinstance(values, dict):
            raise PrlhfError(f"section '{section}' of {path} is not a mapping", "write one `key: value` a line")
    return loaded


def parse_override(text: str, stage: str) -> tuple[str, Any]:
    """`alpha=0.3` or `train.alpha=0.3` to (`alpha`, 0.3); dashes in keys count as underscores."""
    key, separator, value = text.partition("=")
    key = key.strip().removeprefix(f"{stage}.").replace("-", "_")
    if not separator or not key:
        raise PrlhfError(f"'{text}' is not key=value", "write it as in --set alpha=0.3")
    try:
        return key, yaml_value(value)
    except ValueError as error:
        raise PrlhfError(f"cannot read the value of '{text}': {one_line(error)}", "quote it") from error


def parse_overrides(texts: list[str] | None, stage: str) -> dict[str, Any]:
    """All `--set` of a command; later ones win."""
    values = dict(parse_override(text, stage) for text in texts or [])
    for key, value in values.items():
        if value is None:
            raise PrlhfError(f"--set {key}= gives no value", f"leave it out for what {key} is without it")
    return values


def parse_template_options(texts: list[str] | None) -> dict[str, Any] | None:
    """All `--template-option KEY=VALUE` of a command, values as YAML reads them; None where there are none."""
    options: dict[str, Any] = {}
    for text in texts or []:
        key, separator, value = text.partition("=")
        if not separator or not key.strip().isidentifier():
            raise PrlhfError(
                f"--template-option {text} is not KEY=VALUE", "write it as in --template-option enable_thinking=false"
            )
        try:
            options[key.strip()] = yaml_value(value)
        except ValueError as error:
            raise PrlhfError(f"cannot read the value of '{text}': {one_line(error)}", "quote it") from error
    return options or None


def resolve(stage: type[S], *layers: Mapping[str, Any]) -> S:
    """Build a stage's config from layers of values, later ones winning; None means `not given`.

    A key that is not used is refused, but for two cases, both of the first layer, a recipe: what is typed may have made
    it so (a recipe for clusters, and `--user-model individual`), and defaults may be spelled out.
    """
    givens = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    merged = {key: value for layer in givens for key, value in layer.items()}
    typed = {key for layer in givens[1:] for key in layer}
    for key in merged:
        if key not in stage.model_fields:
            raise PrlhfError(*unknown_key(stage, str(key)))
    config = stage.model_validate(merged, context=SAVED)
    given = {key: getattr(config, key) for key in merged}
    needless = unused(stage.used, config, given)
    for key, need in needless.items():
        if key in typed or (need.key not in typed and key in config.given()):
            raise PrlhfError(*refusal(key, need, config, given[key]))
    return stage.model_validate({key: value for key, value in merged.items() if key not in needless})
