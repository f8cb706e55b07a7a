"""The settings of `prlhf adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prlhf.config.keys import key
from prlhf.config.stage import Stage


class AdaptConfig(Stage):
    """New users from a handful of choices, with the language model as it is."""

    choices: Path | None = key(
        None,
        "File of choices, of one user or of many: columns prompt, chosen, rejected and user_id, as for prlhf prep.",
        panel="Choices",
        unset="none",
    )
    user: str | None = key(None, "Learn this user alone.", unset="all users of the file")
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

    model: str | None = key(
        None, "Where the run's base model is now, if it has moved.", panel="Machine", unset="as the run says"
    )
    trust_remote_code: bool = key(False, "Run code that comes with the base model.")
    device: str = key("auto", "auto, cpu or cuda.")
