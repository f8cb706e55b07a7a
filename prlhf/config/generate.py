"""The settings of `prlhf generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from prlhf.config.keys import Needs, above_zero, key, reads, says
from prlhf.config.stage import Stage
from prlhf.errors import PrlhfError
from prlhf.extensions import BASELINES

WRITES = says("baseline", BASELINES, lambda kind: kind.needs_model)
FOR_USERS = says("baseline", BASELINES, lambda kind: not kind.generic_only)
OF_USERS = says("baseline", BASELINES, lambda kind: kind.needs_model and not kind.generic_only)
A_FILE = Needs("prompts", lambda config: config.prompts not in ("eval", "own", "judging"), "a file")


class GenerateConfig(Stage):
    """Responses, one row per (prompt, user)."""

    prompts: str = key(
        "eval",
        "eval: all held-out prompts; own: each user's own held-out prompts; judging: the pairs of the data's "
        "judging.jsonl; or a file: JSONL, JSON, CSV, TSV, parquet or text.",
        panel="What to write",
    )
    prompt_column: str = key(
        "prompt", "The column of that file that holds the prompts.", used=[A_FILE], idle=["prompt"]
    )
    max_prompts: int | None = key(
        None, "Only the first N prompts; with own and judging, of each user.", unset="all", ge=1
    )
    users: str = key(
        "all",
        "all, seen, unseen, generic, and ids, with commas between (an id with a comma in double quotes). all: seen and "
        "generic; with own and judging: seen and unseen.",
        used=[FOR_USERS],
        idle=["all", "generic", "all,generic"],
    )
    unknown_as_generic: bool = key(False, "Serve unknown ids as the generic user.", used=[OF_USERS], idle=[False])
    baseline: str = key(
        "none",
        "What to write instead. base: the base model, as the generic user; oracle: the base, told the user's true "
        "preference; in-context: the base, shown the user's own choices; chosen: the data's chosen responses.",
        named=BASELINES,
    )
    examples: int = key(
        4, "How many of the user's own choices to show.", used=[reads("baseline", BASELINES, "examples")], ge=1
    )
    dataset: str | None = key(None, "Where eval, own and judging come from.", unset="what the run was trained on")
    out: Path = key(
        Path("responses.jsonl"),
        "NAME.jsonl, NAME.parquet or, without an ending, a folder of shards.",
        panel="Output",
    )
    shards: Literal["parquet", "jsonl"] | None = key(
        None, "Write a folder of shards in this format, whatever its name.", unset="by the name"
    )
    block: int = key(256, "Responses per shard; also how many a worker takes at a time, at most.", ge=1)

    max_new_tokens: int = key(128, "Longest response, in tokens.", panel="Writing", used=[WRITES], ge=1)
    temperature: float = key(1.0, "Temperature of sampling; 0: greedy.", used=[WRITES], ge=0)
    top_p: float = key(
        1.0, "Nucleus of the distribution.", used=[WRITES, above_zero("temperature")], idle=[1.0], gt=0, le=1
    )
    best_of: int = key(1, "Write N candidates and keep the one with the highest reward.", ge=1)
    reward: Path | None = key(
        None, "The run that gives rewards to choose by: a reward model, or a policy.", unset="none"
    )
    seed: int = key(0, "Seed; each (prompt, user) has random numbers of its own.")
    skip_long: bool = key(
        False, "Leave out and count prompts that do not fit, instead of refusing them.", used=[WRITES], idle=[False]
    )
    template_options: dict[str, Any] = key(
        {},
        "A variable of the chat template, over those of the run. Repeatable.",
        flag="--template-option",
        example="enable_thinking=false",
        used=[WRITES],
    )

    model: str | None = key(
        None,
        "Where the run's base model is now, if it has moved; the base of a baseline without a run.",
        panel="Machine",
        unset="as the run says",
        used=[WRITES],
    )
    trust_remote_code: bool = key(False, "Run code that comes with the base model.", used=[WRITES], idle=[False])
    batch_size: int = key(32, "(prompt, user) pairs that are written at a time.", used=[WRITES], ge=1)
    device: str = key("auto", "auto, cpu or cuda.", used=[WRITES])
    precision: Literal["auto", "fp32", "bf16"] = key(
        "auto", "Number format of the model; auto: bf16 on GPUs.", used=[WRITES]
    )

    @model_validator(mode="after")
    def best_of_has_a_choice(self) -> GenerateConfig:
        """Refuse best-of-N without a reward, or with only one candidate to choose from."""
        if self.reward is None and self.best_of > 1:
            raise PrlhfError(f"best_of = {self.best_of} has no reward to choose by", "add --reward RUN")
        if self.reward is not None and self.best_of == 1:
            raise PrlhfError(f"reward = {self.reward} has nothing to choose from", "add --best-of N, N at least 2")
        if self.best_of > 1 and (self.temperature == 0 or not WRITES.holds(self)):
            why = "temperature = 0" if WRITES.holds(self) else f"baseline = {self.baseline}"
            raise PrlhfError(
                f"best_of = {self.best_of} with {why} would produce {self.best_of} identical responses",
                "drop one of the two",
            )
        return self
