"""The settings of `prlhf prep`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from prlhf.config.keys import Needs, any_of, key
from prlhf.config.names import KNOWN_DATA
from prlhf.config.stage import Stage
from prlhf.extensions import DATA_SETS

SIMULATED = Needs("simulate", lambda config: config.dataset != "tldr" or config.simulate == "length", "length")
CUSTOM = frozenset("bad_rows eval_fraction columns split config revision".split())  # the keys that custom data use


def read_by(key: str) -> Needs:
    """The condition that the data set reads `key`: it is a registered one that says so, or `key` is of custom data."""

    def holds(config: PrepConfig) -> bool:
        return key in (DATA_SETS[config.dataset].uses if config.dataset in DATA_SETS else CUSTOM)

    def words() -> str:
        known = [name for name in DATA_SETS.ours if key in DATA_SETS[name].uses]
        if key not in CUSTOM:
            return any_of(known)
        return f"{', '.join(known)} or custom data" if known else "custom data, a path or a hub id"

    return Needs("dataset", holds, words)


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
        used=[read_by("bad_rows")],
    )
    eval_fraction: float = key(
        0.1,
        "Share held out: of the prompts, or of each user's dialogues (prism).",
        used=[read_by("eval_fraction")],
        ge=0,
        lt=1,
    )
    unseen_fraction: float = key(
        0.1,
        "Share of users kept out of training.",
        used=[read_by("unseen_fraction")],
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
        used=[read_by("columns")],
    )
    split: str | None = key(
        None,
        "Split to train on, or TRAIN,EVAL.",
        unset="train, and eval, validation or test",
        used=[read_by("split")],
    )
    config: str | None = key(
        None,
        "Configuration of a hub data set, or folder within the folder.",
        unset="the only one",
        used=[read_by("config")],
    )
    revision: str | None = key(
        None, "Branch, tag or commit of a hub data set.", unset="the default branch", used=[read_by("revision")]
    )

    top_users: int = key(
        10,
        "How many of the most active workers to keep.",
        panel="Known data",
        used=[read_by("top_users")],
        ge=1,
    )
    simulate: Literal["none", "length"] = key(
        "none", "Replace the workers' choices by simulated ones, by length.", used=[read_by("simulate")]
    )
    minority: float = key(
        0.3,
        "Share of simulated users that prefer the shorter text.",
        used=[read_by("minority"), SIMULATED],
        ge=0,
        le=1,
    )
    users: int | None = key(
        None,
        "Number of users.",
        unset="10; demo-crowd: 1500; personalllm: 120; ultrafeedback: one per attribute",
        used=[read_by("users")],
        ge=1,
        le=1_000_000,
    )
    comparisons: int | None = key(
        None,
        "Training comparisons per user.",
        unset="300; demo-crowd: 8; personalllm: 100",
        used=[read_by("comparisons")],
        ge=1,
        le=1_000_000,
    )
    noise: float = key(0.0, "Share of training choices that are turned around.", used=[read_by("noise")], ge=0, lt=0.5)
    reveal: int = key(
        1,
        "How many of the three dimensions of taste the text about a user tells.",
        used=[read_by("reveal")],
        ge=0,
        le=3,
    )
    prefs: Literal["ratings", "order"] = key(
        "ratings",
        "A user's top preferences: by rating, or by the order shown, as in the paper's released code.",
        used=[read_by("prefs")],
    )
    judging_users: int = key(
        25,
        "How many seen, and how many unseen, users to select for judging.",
        used=[read_by("judging_users")],
        ge=0,
    )
    text: bool = key(
        False, "Give users their true preference as text.", flag="--preference-text", used=[read_by("text")]
    )
    shots: int = key(
        4,
        "Choices of each unseen user in choices.jsonl, to learn the user from.",
        used=[read_by("shots")],
        ge=1,
        le=100,
    )
    concentration: float = key(
        0.05,
        "Concentration of the Dirichlet distribution of users' weights; if small, a user follows one reward model.",
        used=[read_by("concentration")],
        ge=0.001,
        le=1000,
    )
    people: Literal["prism", "arena"] = key(
        "prism",
        "Whose choices: of PRISM's participants, or of users of Chatbot Arena.",
        used=[read_by("people")],
    )
    attributes: Literal["two", "four"] = key(
        "two",
        "What users choose by: helpfulness, honesty (UF-P-2), or also instruction following, truthfulness (UF-P-4).",
        used=[read_by("attributes")],
    )

    @property
    def folder(self) -> Path:
        """The folder to write: `out`, or data/NAME."""
        return self.out or Path("data") / default_name(self.dataset)
