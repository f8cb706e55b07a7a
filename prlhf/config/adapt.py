"""The settings of `prlhf adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prlhf.config.keys import Needs, key, turned_on
from prlhf.config.stage import Stage

ASKS = turned_on("ask")
READS = Needs("ask", lambda config: not config.ask, "false")
WRITES = Needs("prompts", lambda config: config.prompts is not None, "a file")


class AdaptConfig(Stage):
    """New users from a handful of choices, with the language model as it is."""

    choices: Path | None = key(
        None,
        "File of choices, of one user or of many: columns prompt, chosen, rejected and user_id, as for prlhf prep.",
        panel="Choices",
        unset="none",
        used=[READS],
    )
    user: str | None = key(None, "Learn this user alone; whom to ask.", unset="all users of the file")
    columns: dict[str, str] = key(
        {},
        "The file's name for one of our columns; none leaves the file's column out. Repeatable.",
        flag="--column",
        form="OURS=THEIRS",
        example="user_id=annotator",
    )
    bad_rows: Literal["strict", "skip"] = key(
        "strict",
        "Malformed rows: stop before anything is written, or drop and count them.",
        flag="--strict/--skip-bad",
    )
    out: Path | None = key(None, "Write a new run here, beside the old one.", unset="change the run")
    method: Literal["relinearized", "linear"] = key(
        "relinearized",
        "linear: a choice's margin is a linear function of the user, and read once; relinearized: it is read again at "
        "the user that was found, as often as it disagrees.",
        panel="Method",
    )

    ask: bool = key(
        False,
        "Ask the user which of two responses is better: 1 or left, 2 or right, t (tie), s (skip), u (undo), q (stop). "
        "Each question is the one that is expected to tell most.",
        panel="Questions",
    )
    answers: Path = key(
        Path("answers.jsonl"),
        "File of choices, JSONL, to which the answers are added as they come. What it holds is not asked again.",
        used=[ASKS],
    )
    pool: Path | None = key(
        None,
        "File of pairs to ask about, with the columns of choices; user_id is not needed, and it does not matter which "
        "response is in which column.",
        unset="with --prompts, beside the answers",
        used=[ASKS],
    )
    prompts: Path | None = key(
        None,
        "File of prompts. If the pool is not there yet, the run writes it: responses to each prompt, as the generic "
        "user and as trained users.",
        unset="none",
        used=[ASKS],
    )
    candidates: int = key(4, "Responses to each prompt, of which all pairs are in the pool.", used=[WRITES], ge=2)
    max_new_tokens: int = key(128, "Longest response that is written, in tokens.", used=[WRITES], ge=1)
    sure: float = key(
        0.15,
        "Stop when no question is expected to tell more than this, in nats; an answer tells 0.69 at most.",
        used=[ASKS],
        ge=0,
    )
    seed: int = key(0, "Seed of the responses, and of which one stands on the left.", used=[ASKS])

    model: str | None = key(
        None, "Where the run's base model is now, if it has moved.", panel="Machine", unset="as the run says"
    )
    trust_remote_code: bool = key(False, "Run code that comes with the base model.")
    device: str = key("auto", "auto, cpu or cuda.")
