"""The settings of `prlhf serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from prlhf.config.keys import above_zero, key
from prlhf.config.stage import Stage
from prlhf.errors import PrlhfError

ON_REPLICAS = above_zero("replicas")


class ServeConfig(Stage):
    """A policy behind an OpenAI-compatible API, for all its users."""

    host: str = key("127.0.0.1", "Address to listen on; without keys only one of this machine alone.", panel="Server")
    port: int = key(8000, "Port to listen on; 0: any that is free.", ge=0, le=65535)
    name: str | None = key(None, "Name of the model in requests.", unset="the name of the run's folder")
    keys: Path | None = key(
        None,
        "File of API keys: on each line the SHA-256 of a key, and the users that it may speak as, or *.",
        unset="none: anyone may speak as anyone",
    )
    user_header: str = key("X-OpenWebUI-User-Id", "Header of a request that says who asks.")
    unknown: Literal["generic", "refuse"] = key(
        "generic", "Requests of users whom the run does not know: answer as the generic user, or refuse with 404."
    )

    batch_size: int = key(16, "Responses that are written at a time.", panel="Limits", ge=1)
    queue: int = key(64, "Responses that may wait for their turn; when it is full, requests get 429.", ge=1)
    prefix_cache: int = key(
        512,
        "MiB for what was computed of prompts and responses: what a user's next prompt begins with again, a system "
        "prompt or the conversation so far, is not computed again; 0: off.",
        ge=0,
    )
    max_tokens: int = key(1024, "Longest response, in tokens.", ge=1)
    max_prompt_tokens: int = key(4096, "Longest prompt with the text about the user, in tokens.", ge=1)
    max_choices: int = key(8, "Most responses to one request (n, times its prompts).", ge=1)
    max_body: int = key(1024, "Largest body of a request, in KiB.", ge=1)
    timeout: float = key(300.0, "Longest time for a request, in seconds.", gt=0)

    feedback: Path | None = key(
        None,
        "SQLite file that keeps the choices sent to /v1/feedback.",
        panel="Feedback",
        unset="feedback.sqlite in the run",
    )
    adapt_every: int = key(
        8, "Learn a user, as prlhf adapt does, after so many further choices; 0: only keep them.", ge=0
    )
    log_conversations: bool = key(
        False, "Keep requests and responses with the choices; prlhf feedback conversations lists them."
    )

    replicas: int = key(
        0,
        "Copies of the model on Ray, each in a process of its own; 0: one in this process, without Ray.",
        panel="Replicas",
        ge=0,
    )
    max_replicas: int | None = key(
        None,
        "Start further copies, up to so many, while more requests come than are written at a time.",
        unset="as many as replicas",
        used=[ON_REPLICAS],
        ge=1,
    )
    ray_address: str | None = key(
        None,
        "A running Ray cluster: auto, HOST:PORT or ray://HOST:PORT.",
        unset="start one on this machine",
        used=[ON_REPLICAS],
    )
    gpus_per_replica: float | None = key(
        None, "GPUs of each copy.", unset="1 where the cluster has any, else 0", used=[ON_REPLICAS], ge=0
    )
    cpus_per_replica: float = key(1, "CPUs of each copy.", used=[ON_REPLICAS], gt=0)
    verbose: bool = key(False, "Show Ray's own messages.", used=[ON_REPLICAS])

    template_options: dict[str, Any] = key(
        {},
        "A variable of the chat template, over those of the run. Repeatable.",
        panel="Machine",
        flag="--template-option",
        example="enable_thinking=false",
    )
    model: str | None = key(None, "Where the run's base model is now, if it has moved.", unset="as the run says")
    trust_remote_code: bool = key(False, "Run code that comes with the base model.")
    device: str = key("auto", "auto, cpu or cuda.")
    precision: Literal["auto", "fp32", "bf16"] = key("auto", "Number format of the model; auto: bf16 on GPUs.")

    @model_validator(mode="after")
    def grow_upwards(self) -> Self:
        """Refuse fewer replicas at most than there are at the start."""
        if self.replicas and self.max_replicas is not None and self.max_replicas < self.replicas:
            raise PrlhfError(
                f"max_replicas = {self.max_replicas} is less than replicas = {self.replicas}", "give a larger one"
            )
        return self
