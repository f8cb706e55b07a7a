"""The settings of `prlhf judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prlhf.config.keys import Needs, key, turned_on
from prlhf.config.names import ProtocolName
from prlhf.config.stage import Stage
from prlhf.errors import PrlhfError, nearest


def kinds_of(judges: str | None) -> set[str]:
    """The kinds of the judges in `rule:longer,llm:gpt-4o`: {`rule`, `llm`}."""
    return {name.strip().partition(":")[0] for name in (judges or "").split(",")}


ASKING = Needs("judge", lambda config: "llm" in kinds_of(config.judge), "llm")
LOADING = frozenset(("model", "trust_remote_code", "device", "precision"))  # keys of how a run is loaded
FEW_SHOT = frozenset(("few_shot", "few_shot_baselines"))  # keys of the evaluation by few choices
ALL = 2**31  # choices: all that there are
FEW_SHOT_BASELINES = ("in-context", "closed-form")
GENERAL = Needs("general", lambda config: config.general is not None, "a file")
NOT_IN_BATCHES = Needs("batch", lambda config: not config.batch, "false")


class JudgeConfig(Stage):
    """Win-rates between two sets of responses, or a checkpoint's accuracy on held-out comparisons."""

    refuses_unused = False  # prlhf/judge/judges.py does, which knows whether a checkpoint is judged

    judge: str | None = key(
        None,
        "rule:shorter, rule:longer, reward:RUN, oracle:DATASET, llm or llm:MODEL; several with commas between, which "
        "also says how far they agree. Required, except with --checkpoint.",
        panel="What to judge",
        unset="none",
    )
    dataset: Path | None = key(
        None,
        "Prepared data: that say who the users are, for judges that ask; with --checkpoint, whose held-out comparisons "
        "are read.",
        unset="with --checkpoint, the run's",
    )
    calibrate: Path | None = key(
        None, "Prepared data: how often does the judge choose as people did there? With or without A and B.", unset="no"
    )
    few_shot: str | None = key(
        None,
        "With --checkpoint: learn each unseen user from K choices and test on others, for one K or several with commas "
        "between: 1,2,4,8; all: those of choices.jsonl, however many.",
        unset="no",
    )
    few_shot_baselines: str = key(
        "",
        "Baselines that learn from the same choices, with commas between: in-context, closed-form.",
        used=[turned_on("few_shot")],
    )
    general: Path | None = key(
        None,
        "With --checkpoint: questions of multiple choice and texts (JSONL, as for ARC or HellaSwag), on which general "
        "ability is measured instead, as users, as the generic user, and of the base.",
        unset="no",
    )
    general_users: int = key(5, "Users who read them, drawn by the seed.", used=[GENERAL], ge=0)
    limit: int | None = key(
        None, "Judge, and calibrate on, at most N pairs each, drawn by the seed.", unset="all", ge=1
    )
    out: Path = key(Path("judged"), "Folder to write.")
    seed: int = key(0, "Seed of the bootstrap, of random orders, of `limit` and of the shuffled control.")
    bootstrap: int = key(2000, "Resamples for an interval.", ge=1)
    skip_long: bool = key(
        False, "With --checkpoint: leave out and count comparisons that do not fit, instead of refusing them."
    )

    model: str | None = key(
        None, "Where the run's base model is now, if it has moved.", panel="Machine", unset="as the run says"
    )
    trust_remote_code: bool = key(False, "Run code that comes with the base model.")
    batch_size: int = key(16, "Pairs, or comparisons, per forward pass.", ge=1)
    device: str = key("auto", "auto, cpu or cuda.")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "Number format of the run; auto: bf16 on GPUs.")

    judge_model: str | None = key(
        None,
        "The server's name for the model.",
        panel="Judge llm: a language model",
        unset="the MODEL of llm:MODEL",
        used=[ASKING],
    )
    base_url: str | None = key(
        None, "OpenAI-compatible server.", unset="$OPENAI_BASE_URL, else OpenAI's", used=[ASKING]
    )
    api_version: str | None = key(
        None,
        "Azure: the version of its API; --base-url is the resource, --judge-model the deployment.",
        unset="not Azure",
        used=[ASKING],
    )
    protocol: ProtocolName | None = key(
        None, "What the judge learns about the user.", unset="what makes most of the data set", used=[ASKING]
    )
    prompt: Path | None = key(
        None, "A Jinja file in place of the protocol's prompt.", unset="the protocol's", used=[ASKING]
    )
    order: Literal["both", "random", "ab"] = key(
        "both", "Which response stands first; both: asks twice.", used=[ASKING]
    )
    temperature: float = key(0.0, "Temperature of the judge's answers.", used=[ASKING], ge=0, le=2)
    max_answer_tokens: int = key(300, "Tokens an answer may have, thoughts included.", used=[ASKING], ge=1)
    raised_answer_tokens: int | None = key(
        None,
        "An answer that was cut off is asked for once more with this many tokens.",
        unset="4 times max_answer_tokens, and 4096 at least",
        used=[ASKING],
        ge=1,
    )
    extra_body: dict[str, Any] = key(
        {},
        "A further parameter of each request. Repeatable.",
        form="KEY=VALUE",
        example="reasoning_effort=low",
        used=[ASKING],
    )
    leave_out: str = key(
        "",
        "What the server does not take, with commas between: response_format, json_schema, temperature, seed, "
        "max_completion_tokens (max_tokens is sent), max_tokens, system. What it refuses is left out anyway.",
        used=[ASKING],
    )
    concurrency: int = key(8, "Calls at a time.", used=[ASKING, NOT_IN_BATCHES], ge=1)
    requests_per_minute: float | None = key(
        None, "Calls per minute at most.", unset="no limit", used=[ASKING, NOT_IN_BATCHES], gt=0
    )
    timeout: float = key(120.0, "Seconds a call may take.", used=[ASKING], gt=0)
    retries: int = key(6, "Retries of a call that a busy or broken server did not answer.", used=[ASKING], ge=0)
    backoff: float = key(1.0, "Seconds before the first retry; doubles each time, with jitter.", used=[ASKING], ge=0)
    max_wait: float = key(
        300.0, "Seconds a server may ask to wait; if it asks for more, the run stops.", used=[ASKING], ge=0
    )
    prices: Path | None = key(
        None, "YAML file of US dollars per million tokens.", unset="the shipped prices", used=[ASKING]
    )
    max_cost: float | None = key(
        None, "Maximum cost of this run, in US dollars.", unset="no limit", used=[ASKING], ge=0
    )
    max_calls: int | None = key(None, "Maximum number of calls of this run.", unset="no limit", used=[ASKING], ge=0)
    batch: bool = key(False, "Use the provider's Batch API: cheaper, later.", used=[ASKING])
    batch_poll: float = key(30.0, "Seconds between two looks at a batch.", used=[ASKING, turned_on("batch")], ge=0)

    def shots(self) -> list[int]:
        """The numbers of choices of `few_shot`, ascending. Raises PrlhfError."""
        parts = [part.strip() for part in (self.few_shot or "").split(",")]
        if not all(part == "all" or (part.isascii() and part.isdigit() and int(part) > 0) for part in parts):
            raise PrlhfError(f"few_shot = {self.few_shot} is not a number of choices", "give 4, or several: 1,2,4,8")
        return sorted({ALL if part == "all" else int(part) for part in parts})

    def baselines(self) -> list[str]:
        """The names of `few_shot_baselines`. Raises PrlhfError."""
        names = [part.strip() for part in self.few_shot_baselines.split(",") if part.strip()]
        for name in names:
            if name not in FEW_SHOT_BASELINES:
                raise PrlhfError(f"unknown baseline '{name}'", nearest(name, FEW_SHOT_BASELINES))
        return names
