"""The settings of `prlhf prep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from prlhf.config.keys import Needs, key
from prlhf.config.names import KNOWN_DATA
from prlhf.config.stage import Stage
from prlhf.extensions import DATA_SETS

SIMULATED = Needs("simulate", lambda config: config.dataset != "tldr" or config.simulate == "length", "length")
CUSTOM = "custom data"


def read_by(name: str, *kinds: str) -> Needs:
    """The condition that the data set reads the key `name`: it is one of `kinds`, or a registered one that says so."""

    def holds(config: PrepConfig) -> bool:
        if config.dataset in DATA_SETS.ours:
            return config.dataset in kinds
        return name in DATA_SETS[config.dataset].uses if config.dataset in DATA_SETS else CUSTOM in kinds

    if kinds == (CUSTOM,):
        return Needs("dataset", holds, "custom data, a path or a hub id")
    if len(kinds) > 2 and CUSTOM not in kinds:
        return Needs("dataset", holds, f"one of {', '.join(kinds)}")
    return Needs("dataset", holds, " or ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]])))


def default_name(dataset: str) -> str:
    """A folder's name for a data set: ORG-NAME of a hub id, NAME of a folder, NAME-csv of a file NAME.csv."""
    path = Path(os.path.expandvars(dataset)).expanduser()
    if path.is_file():
        return path.name.lstrip(".").replace(".", "-")
    if path.exists() or dataset.count("/") != 1:
        return path.resolve().name or "root"
    return dataset.replace("/", "-")


class PrepConfig(Stage):
    """Raw data to a prepared data set."""

    dataset: str = key(..., f"{', '.join(KNOWN_DATA)}, or the path or hub id of custom data.", panel="Data set")
    out: Path | None = key(None, "Folder to write.", unset="data/NAME")
    source: str | None = key(None, "Local file or folder of the raw data.", unset="the hub")
    seed: int = key(0, "Seed of everything random.")
    bad_rows: Literal["strict", "skip"] = key(
        "strict",
        "Malformed rows: stop before anything is written, or drop and count them.",
        flag="--strict/--skip-bad",
        used=[read_by("bad_rows", "tldr", "prism", "psoups", CUSTOM)],
    )
    eval_fraction: float = key(
        0.1,
        "Share held out: of the prompts, or of each user's dialogues (prism).",
        used=[read_by("eval_fraction", "prism", "psoups", CUSTOM)],
        ge=0,
        lt=1,
    )
    unseen_fraction: float = key(
        0.1,
        "Share of users kept out of training.",
        used=[read_by("unseen_fraction", "demo-crowd", "prism")],
        ge=0,
        lt=1,
    )

    columns: dict[str, str] = key(
        {},
        "The file's name for one of our columns; none leaves the file's column out. Repeatable.",
        panel="Custom data",
        flag="--column",
        form="OURS=THEIRS",
        example="user_id=annotator",
        used=[read_by("columns", CUSTOM)],
    )
    split: str | None = key(
        None,
        "Split to train on, or TRAIN,EVAL.",
        unset="train, and eval, validation or test",
        used=[read_by("split", CUSTOM)],
    )
    config: str | None = key(
        None,
        "Configuration of a hub data set, or folder within the folder.",
        unset="the only one",
        used=[read_by("config", CUSTOM)],
    )
    revision: str | None = key(
        None, "Branch, tag or commit of a hub data set.", unset="the default branch", used=[read_by("revision", CUSTOM)]
    )

    top_users: int = key(
        10,
        "How many of the most active workers to keep.",
        panel="Known data",
        used=[read_by("top_users", "tldr")],
        ge=1,
    )
    simulate: Literal["none", "length"] = key(
        "none", "Replace the workers' choices by simulated ones, by length.", used=[read_by("simulate", "tldr")]
    )
    minority: float = key(
        0.3,
        "Share of simulated users that prefer the shorter text.",
        used=[read_by("minority", "demo", "tldr"), SIMULATED],
        ge=0,
        le=1,
    )
    users: int | None = key(
        None,
        "Number of users.",
        unset="10; demo-crowd: 1500",
        used=[read_by("users", "demo", "demo-crowd")],
        ge=1,
        le=1_000_000,
    )
    comparisons: int | None = key(
        None,
        "Training comparisons per user.",
        unset="300; demo-crowd: 8",
        used=[read_by("comparisons", "demo", "demo-profiles", "demo-crowd")],
        ge=1,
        le=1_000_000,
    )
    noise: float = key(
        0.0, "Share of training choices that are turned around.", used=[read_by("noise", "demo-crowd")], ge=0, lt=0.5
    )
    reveal: int = key(
        1,
        "How many of the three dimensions of taste the text about a user tells.",
        used=[read_by("reveal", "demo-crowd")],
        ge=0,
        le=3,
    )
    prefs: Literal["ratings", "order"] = key(
        "ratings",
        "A user's top preferences: by rating, or by the order shown, as in the paper's released code.",
        used=[read_by("prefs", "prism")],
    )
    judging_users: int = key(
        25,
        "How many seen, and how many unseen, users to select for judging.",
        used=[read_by("judging_users", "prism")],
        ge=0,
    )
    text: bool = key(
        False, "Give users their true preference as text.", flag="--preference-text", used=[read_by("text", "psoups")]
    )

    @property
    def folder(self) -> Path:
        """The folder to write: `out`, or data/NAME."""
        return self.out or Path("data") / default_name(self.dataset)
