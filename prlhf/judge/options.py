"""Options that the chosen judge does not use are refused: a setting that does nothing misleads."""

from __future__ import annotations

from collections.abc import Iterable

from prlhf.config import JudgeConfig
from prlhf.errors import PrlhfError, nearest
from prlhf.judge.dialect import LEAVE_OUT, OURS

ASKING = (
    "judge_model", "base_url", "api_version", "protocol", "prompt", "order", "temperature", "max_answer_tokens",
    "raised_answer_tokens", "extra_body", "leave_out", "concurrency", "requests_per_minute", "timeout", "retries",
    "backoff", "max_wait", "prices", "max_cost", "max_calls", "batch", "batch_poll",
)  # fmt: skip
OF_A_MODEL = ("model", "trust_remote_code", "device")
NOT_IN_A_BATCH = ("concurrency", "requests_per_minute")
NOT_OF_A_CHECKPOINT = ("judge", "calibrate", "limit", *ASKING)


def refuse_unused(config: JudgeConfig, names: Iterable[str]) -> None:
    """Raise PrlhfError at the first setting that none of the judges called `names` uses."""
    kinds = {name.partition(":")[0] for name in names}
    asking = "llm" in kinds
    said = f"--judge {config.judge}"
    if not asking:
        _refuse(config, ASKING, said, "use it with --judge llm, or leave it out")
        if config.dataset != config.calibrate:
            _refuse(config, ("dataset",), said, "leave it out: only --judge llm asks who the users are")
    if "reward" not in kinds:
        _refuse(config, OF_A_MODEL, said, "use it with --judge reward:RUN, or leave it out")
    if asking and "llm" not in names:
        _refuse(config, ("judge_model",), said, "leave it out, or write --judge llm")
    if asking and config.batch:
        _refuse(config, NOT_IN_A_BATCH, "--batch", "leave it out")
    elif asking:
        _refuse(config, ("batch_poll",), said, "add --batch, or leave it out")
    if asking:
        if "temperature" in left_out(config):
            _refuse(config, ("temperature",), "--leave-out temperature", "drop one of the two")
        for key in config.extra_body:
            if key in OURS:
                raise PrlhfError(f"extra_body names {key}, which prlhf sets itself", _own(key))


def refuse_of_checkpoint(config: JudgeConfig) -> None:
    """Raise PrlhfError at the first setting that the accuracy of a checkpoint does not use."""
    _refuse(config, NOT_OF_A_CHECKPOINT, "--checkpoint", "leave it out")


def left_out(config: JudgeConfig) -> list[str]:
    """The names in `leave_out`. Raises PrlhfError for one that nothing is called."""
    names = [name.strip() for name in config.leave_out.split(",") if name.strip()]
    for name in names:
        if name not in LEAVE_OUT:
            raise PrlhfError(f"leave_out names '{name}', which no request has", nearest(name, LEAVE_OUT))
    return names


def _refuse(config: JudgeConfig, keys: Iterable[str], by: str, hint: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value != type(config).model_fields[key].default:
            raise PrlhfError(f"{key} = {value} is not used by {by}", hint)


def _own(key: str) -> str:
    if key in ("temperature", "seed"):
        return f"use --set {key}=VALUE"
    return "use --max-answer-tokens" if "tokens" in key else "leave it out"
