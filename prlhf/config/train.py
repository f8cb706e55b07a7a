"""The settings of `prlhf train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import model_validator

from prlhf.config.keys import Needs, above_zero, key, one_of, reads, says
from prlhf.config.names import KNOWN_DATA
from prlhf.config.stage import Stage
from prlhf.errors import PrlhfError, nearest
from prlhf.extensions import LOSSES, USER_MODELS

WITH_USERS = one_of("objective", "dpo", "online-dpo", "grpo", "rloo", "rm")
REFERENCE = one_of("objective", "dpo", "online-dpo", "grpo", "rloo")
DPO = one_of("objective", "dpo", "online-dpo")
OFFLINE_DPO = one_of("objective", "dpo")
ONLINE = one_of("objective", "online-dpo", "grpo", "rloo")  # the policy writes during its training
ONLINE_DPO = one_of("objective", "online-dpo")
POLICY_GRADIENT = one_of("objective", "grpo", "rloo")
PASSES = one_of("objective", "dpo", "rm", "sft")  # over the comparisons of the data
POLICY = one_of("objective", "dpo", "online-dpo", "grpo", "rloo", "sft")
DROPOUT = one_of("objective", "dpo", "online-dpo", "rm", "sft")
PERSONAL = says("user_model", USER_MODELS, lambda kind: kind.personal)
SMOOTHED = says("loss", LOSSES, lambda loss: loss.smoothed)
IN_PROMPT = one_of("user_in", "prompt", "both")
IN_ADAPTER = one_of("user_in", "adapter", "both")
STARTED = says("user_model", USER_MODELS, lambda kind: kind.starts)
CHOICES_START = Needs(
    "user_model",
    lambda config: config.user_init != "choices" or STARTED.holds(config),
    lambda: f"{STARTED.words} for choices",
)
PROMPT_OR_CHOICES = Needs(
    "user_in",
    lambda config: config.user_in != "adapter" or config.user_init == "choices",
    "prompt, both, or any for choices",
)
TOKENS_OR_CHOICES = Needs(
    "user_tokens", lambda config: config.user_tokens > 0 or config.user_init == "choices", "more than 0"
)
PROMPT_OR_HEAD = Needs(
    "user_in", lambda config: config.user_in != "adapter" or config.objective == "rm", "prompt or both"
)
TOKENS_OR_HEAD = Needs("user_tokens", lambda config: config.user_tokens > 0 or config.objective == "rm", "more than 0")
ADAPTER = Needs("full_finetune", lambda config: not config.full_finetune, "false")
STOPPED = Needs("stop_metric", lambda config: config.stop_metric is not None, "a metric, such as accuracy_macro")
RANKED = (
    "accuracy_macro",
    "accuracy_seen",
    "accuracy_unseen",
    "accuracy_worst_tenth",
    "accuracy_generic",
    "margin_mean",
)
LESS_IS_BETTER = ("nats_per_token", "nats_per_response")
# the numbers of an evaluation, by objective
METRICS = dict.fromkeys(("dpo", "online-dpo", "grpo", "rloo", "rm"), RANKED) | {"sft": LESS_IS_BETTER}


WITHOUT_USERS: Mapping[str, Any] = MappingProxyType({"user_model": "uniform", "user_tokens": 0, "user_text": False})


class TrainConfig(Stage):
    """A prepared data set and a base model to a personalized policy, or reward model."""

    dataset: str = key(
        "demo", f"{', '.join(KNOWN_DATA)} (prepared on first use), or a prepared folder.", panel="Data and model"
    )
    out: Path | None = key(None, "Run folder.", unset="runs/DATASET-USERMODEL, DATASET-KIND-USERMODEL or DATASET-sft")
    model: str | None = key(
        None,
        "Base model: hub id, folder or .gguf file.",
        unset="the bundled tiny model for the demo sets, else SmolLM2-135M",
    )
    trust_remote_code: bool = key(False, "Run code that comes with the base model.")
    seed: int = key(0, "Seed of everything random.")

    # section 4.3
    user_model: str = key(
        "individual",
        "uniform: the same for all, which is vanilla DPO or reward modeling; individual: a vector of their own for "
        "each user; cluster: a mixture of K.",
        panel="User model",
        named=USER_MODELS,
        used=[WITH_USERS],
        idle=["uniform"],
    )
    k: int = key(10, "Number of clusters K.", used=[WITH_USERS, reads("user_model", USER_MODELS, "k")], ge=1)
    user_in: Literal["prompt", "adapter", "both"] = key(
        "prompt",
        "Where users act. prompt: soft-prompt vectors, as in the paper; adapter: gates on the rank of LoRA; both.",
        used=[WITH_USERS],
        idle=["prompt"],
    )
    user_tokens: int = key(10, "T_u: soft-prompt vectors per user.", used=[WITH_USERS, IN_PROMPT], idle=[0], ge=0)
    user_init: Literal["zero", "vocabulary", "random", "choices"] = key(
        "vocabulary",
        "How users' vectors start. choices: where their training comparisons put them under the base, by one forward "
        "pass before the first step.",
        used=[WITH_USERS, CHOICES_START, PROMPT_OR_CHOICES, TOKENS_OR_CHOICES],
    )
    gates: Literal["one", "block"] = key(
        "one",
        "A user's gates. one: the same in all layers; block: one for each decoder layer.",
        used=[WITH_USERS, IN_ADAPTER],
    )
    gate_scale: float = key(
        2.0,
        "Standard deviation of users' gates at the start, around the generic user's, which are 1.",
        used=[WITH_USERS, IN_ADAPTER],
        ge=0,
    )
    cluster_weights: Literal["softmax", "linear"] = key(
        "softmax",
        "A user's mixture of clusters. softmax: as in the paper's released code; linear: V.w, as written in the paper.",
        used=[WITH_USERS, reads("user_model", USER_MODELS, "cluster_weights")],
    )
    user_text: bool = key(True, "Prepend the text about the user, if there is any.", used=[WITH_USERS], idle=[False])

    # section 4.4
    objective: Literal["dpo", "online-dpo", "grpo", "rloo", "rm", "sft"] = key(
        "dpo",
        "dpo: a policy; online-dpo, grpo, rloo: a policy, from its own responses, scored by a reward model; rm: a "
        "reward model; sft: a base model, without users.",
        panel="Objective",
    )
    loss: str = key(
        "sigmoid",
        f"The loss in place of DPO's log-sigmoid: {', '.join(LOSSES.ours)}.",
        named=LOSSES,
        used=[DPO],
    )
    label_smoothing: float = key(
        0.0,
        "Share of preferences that are assumed to be flipped.",
        used=[DPO, SMOOTHED],
        idle=[0.0],
        ge=0,
        lt=0.5,
    )
    alpha: float = key(
        0.5,
        "Weight of the term with the user's id; 1 - alpha is the weight of the generic user's term. In rounds: the "
        "share of prompts that are written to for users; the others are for the generic user.",
        used=[WITH_USERS, PERSONAL],
        ge=0,
        le=1,
    )
    beta: float = key(
        0.1, "DPO's beta; the weight of the KL divergence from the base with grpo and rloo.", used=[REFERENCE], gt=0
    )
    nll: float = key(
        0.5,
        "Weight of the negative log-likelihood per chosen token, in both terms; 0: as published.",
        used=[DPO],
        idle=[0.0],
        ge=0,
    )

    reward: Path | None = key(
        None,
        "The run that scores candidates: a reward model, or a policy by its implicit reward.",
        panel="Rounds",
        unset="none",
        used=[ONLINE],
    )
    rounds: int = key(8, "Rounds: candidates are written and scored, then trained on.", used=[ONLINE], ge=1)
    round_steps: int = key(25, "Optimizer steps of a round.", used=[ONLINE], ge=1)
    round_prompts: int = key(200, "Prompts of a round, each written to for one user.", used=[ONLINE], ge=1)
    candidates: int = key(
        8,
        "Responses to a prompt; with online-dpo the best and the worst become a comparison, with grpo and rloo all are "
        "trained on.",
        used=[ONLINE],
        ge=2,
    )
    max_new_tokens: int = key(128, "Longest candidate, in tokens.", used=[ONLINE], ge=1)
    temperature: float = key(1.0, "Temperature at which candidates are sampled.", used=[ONLINE_DPO], gt=0)
    replay: int = key(1, "Earlier rounds whose comparisons are trained on again.", used=[ONLINE_DPO], ge=0)
    offline_fraction: float = key(
        0.5, "Share of a batch that is comparisons of the data set.", used=[ONLINE_DPO], ge=0, lt=1
    )
    advantage_scale: Literal["user", "group", "none"] = key(
        "user",
        "The standard deviation in which advantages are measured. user: of the user's rewards around the mean of their "
        "prompt, in a round; group: of the candidates to one prompt; none: they stay in units of reward.",
        used=[POLICY_GRADIENT],
    )
    clip: float = key(
        0.2,
        "How far the policy's ratio to the one that wrote may be from 1 and still be moved further.",
        used=[POLICY_GRADIENT],
        gt=0,
        lt=1,
    )

    full_finetune: bool = key(False, "Train all weights of the base instead of a LoRA adapter.", panel="Adapter")
    quantize: Literal["none", "nf4", "int8"] = key(
        "none",
        "Keep the base's linear layers in 4 bits per weight (nf4, as in QLoRA) or in 8 (int8), by bitsandbytes.",
        used=[ADAPTER],
        idle=["none"],
    )
    lora_r: int = key(8, "Rank of the LoRA adapter.", used=[ADAPTER], ge=1)
    lora_alpha: int = key(16, "LoRA's alpha; the adapter is scaled by alpha / rank.", used=[ADAPTER], ge=1)
    lora_variant: Literal["plain", "rslora", "dora"] = key(
        "plain",
        "rslora: the adapter is scaled by alpha / sqrt(rank), for high ranks; dora: layers' magnitudes are trained "
        "apart from their directions (DoRA).",
        used=[ADAPTER],
        idle=["plain"],
    )
    lora_dropout: float = key(0.05, "Dropout of the LoRA adapter.", used=[ADAPTER, DROPOUT], idle=[0.0], ge=0, lt=1)
    lora_targets: str = key(
        "all-linear", "Which layers get an adapter: all-linear, or names with commas between.", used=[ADAPTER]
    )

    lr: float = key(1e-4, "Learning rate of the adapter, or of the base.", panel="Optimizer", gt=0)
    cluster_lr: float = key(
        5e-2,
        "Learning rate of the users' cluster weights w_i, which are logits and not embeddings.",
        used=[WITH_USERS, reads("user_model", USER_MODELS, "cluster_lr")],
        gt=0,
    )
    user_lr: float = key(
        5e-3,
        "Learning rate of the user model and of a reward model's head; neither has weight decay.",
        used=[WITH_USERS, PROMPT_OR_HEAD, TOKENS_OR_HEAD],
        gt=0,
    )
    gate_lr: float = key(3e-2, "Learning rate of users' gates.", used=[WITH_USERS, IN_ADAPTER], gt=0)
    weight_decay: float = key(0.0, "Weight decay of the adapter, or of the base.", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = key("cosine", "Learning rates after the warmup.")
    warmup_steps: int = key(10, "Optimizer steps over which the learning rates rise.", ge=0)
    epochs: float = key(1.0, "Passes over the training comparisons.", used=[PASSES], gt=0)
    max_steps: int | None = key(
        None, "Stop after this many optimizer steps.", unset="as many as `epochs` takes", used=[PASSES], ge=1
    )
    batch_size: int = key(
        8, "Comparisons per forward pass; with grpo and rloo: prompts, each with its candidates.", ge=1
    )
    accumulation: int = key(1, "Forward passes per optimizer step.", ge=1)
    max_grad_norm: float = key(1.0, "Clip gradients to this norm.", gt=0)

    max_tokens: int | None = key(
        None,
        "Limit of user tokens, text, prompt and response together, in tokens.",
        panel="Lengths",
        unset="the base's context",
        ge=8,
    )
    max_prompt_tokens: int | None = key(
        None, "Longer prompts lose their beginning.", unset="prompts are cut only to fit the context", ge=1
    )
    skip_long: bool = key(False, "Leave out and count comparisons that do not fit, instead of refusing them.")
    template_options: dict[str, Any] = key(
        {},
        "A variable of the chat template. Repeatable.",
        flag="--template-option",
        example="enable_thinking=false",
    )

    device: str = key("auto", "auto, cpu or cuda.", panel="Machine")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "Number format of the base; auto: bf16 on GPUs.")
    gradient_checkpointing: bool = key(False, "Compute activations again in the backward pass, to save memory.")
    prefix_tree: bool = key(
        True,
        "Read what responses have in common once; off: a padded row for each response.",
    )
    pack_tokens: int | None = key(None, "Tokens per forward pass.", unset="1024 on a CPU, 16384 on a GPU", ge=1)
    group_by_prompt: bool = key(
        False, "Put comparisons of one prompt into one batch, to read the prompt once.", used=[PASSES], idle=[False]
    )
    reference_cache: bool = key(
        True, "Keep the base's log-probs on disk, for all runs on this base.", used=[REFERENCE], idle=[False]
    )
    reference_first: bool = key(
        False,
        "Compute all of the base's log-probs before the first step; full fine-tuning always does.",
        used=[OFFLINE_DPO],
        idle=[False],
    )

    eval_every: int = key(
        0, "Optimizer steps between evaluations; 0: only at the end.", panel="Evaluation and checkpoints", ge=0
    )
    eval_limit: int | None = key(None, "Held-out comparisons per evaluation at most.", unset="all", ge=1)
    stop_metric: str | None = key(
        None,
        "Keep the model of the evaluation that is best by this metric: accuracy_macro, accuracy_worst_tenth, "
        "margin_mean and others; nats_per_token with sft, where less is better.",
        unset="the model after the last step is kept",
        used=[above_zero("eval_every")],
    )
    patience: int = key(3, "Stop after this many evaluations in a row without a better one.", used=[STOPPED], ge=1)
    sample_every: int = key(
        0, "Optimizer steps between samples of what the model writes; 0: none.", used=[POLICY], idle=[0], ge=0
    )
    sample_users: int = key(
        3, "Users to write samples for, besides the generic user.", used=[POLICY, above_zero("sample_every")], ge=0
    )
    sample_prompts: int = key(
        2, "Held-out prompts to write samples for.", used=[POLICY, above_zero("sample_every")], ge=1
    )
    save_every: int = key(50, "Optimizer steps between checkpoints.", ge=1)
    keep_checkpoints: int = key(2, "Newest checkpoints to keep.", ge=1)
    report_to: str = key(
        "auto",
        "Trackers, with commas between: trackio, wandb, mlflow, tensorboard or others of transformers; none; "
        "auto: trackio where it is installed.",
    )

    @model_validator(mode="after")
    def personalized_needs_tokens(self) -> TrainConfig:
        """Refuse a user model that would have no parameters."""
        if self.objective != "sft" and self.user_in != "adapter" and self.user_tokens == 0 and PERSONAL.holds(self):
            raise PrlhfError(
                f"user_tokens = 0 leaves user_model = {self.user_model} without any parameter",
                "set user_tokens to 1 or more, or user_model to uniform",
            )
        return self

    @model_validator(mode="after")
    def gates_need_an_adapter(self) -> TrainConfig:
        """Refuse gates where there is no adapter for them."""
        if self.objective != "sft" and self.full_finetune and self.user_in != "prompt":
            raise PrlhfError(
                f"full_finetune = true leaves no adapter for user_in = {self.user_in}",
                "set user_in to prompt, or leave full_finetune out",
            )
        return self

    @model_validator(mode="after")
    def gates_are_exact(self) -> TrainConfig:
        """Refuse gates with DoRA: it divides by the norm of base and adapter together, which a gate changes."""
        if self.objective != "sft" and self.lora_variant == "dora" and self.user_in != "prompt":
            raise PrlhfError(
                f"lora_variant = dora scales layers as if there were no gates, so not with user_in = {self.user_in}",
                "set lora_variant to rslora or plain, or user_in to prompt",
            )
        return self

    @model_validator(mode="after")
    def metric_is_known(self) -> TrainConfig:
        """Refuse to stop by what an evaluation does not have."""
        known = METRICS[self.objective]
        if self.stop_metric is not None and self.stop_metric not in known:
            raise PrlhfError(
                f"stop_metric = {self.stop_metric} is not a metric of objective = {self.objective}",
                nearest(self.stop_metric, known),
            )
        return self

    @model_validator(mode="after")
    def rounds_have_a_reward(self) -> TrainConfig:
        """Refuse rounds without a reward, or without an adapter: with it off, the model is the reference."""
        if ONLINE.holds(self) and self.reward is None:
            raise PrlhfError(f"objective = {self.objective} has no reward to score candidates by", "add --reward RUN")
        if ONLINE.holds(self) and self.full_finetune:
            raise PrlhfError(
                f"full_finetune = true leaves no reference for new responses with objective = {self.objective}",
                "leave full_finetune out",
            )
        return self

    @model_validator(mode="after")
    def choices_move_gates(self) -> TrainConfig:
        """Refuse a start that gates of no spread could not show."""
        if self.user_init == "choices" and self.user_in == "adapter" and self.gate_scale == 0:
            raise PrlhfError(
                "gate_scale = 0 starts everyone as the generic user, whatever user_init = choices finds",
                "set gate_scale above 0, or leave user_init out",
            )
        return self

    @model_validator(mode="after")
    def loss_fits(self) -> TrainConfig:
        """Refuse a loss that would be infinite."""
        smoothed = self.label_smoothing or "loss" not in self.given()  # the default needs no import to be known
        if DPO.holds(self) and not smoothed and LOSSES[self.loss].smoothing_required:
            raise PrlhfError(f"label_smoothing = 0 makes loss = {self.loss} infinite", "set it to 0.001, for example")
        return self

    @property
    def slots(self) -> int:
        """Soft-prompt vectors in front of each prompt: T_u, or 0 if users act in the adapter alone."""
        return 0 if self.user_in == "adapter" else self.user_tokens

    @property
    def folder(self) -> Path:
        """The folder of the run: `out`, or runs/DATASET-MODEL."""
        kind = {"dpo": [], "online-dpo": ["online"]}.get(self.objective, [self.objective])
        parts = [Path(self.dataset).name, *kind, *([] if self.objective == "sft" else [self.user_model])]
        return self.out or Path("runs") / "-".join(parts)
