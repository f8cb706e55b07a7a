"""Who a response is written for: everyone that a model or its data know, and the users that `--users` names."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass

from prlhf.config import GenerateConfig
from prlhf.dataset import GENERIC, Prepared
from prlhf.errors import PrlhfError, one_line

GROUPS = ("all", "seen", "unseen")


@dataclass(frozen=True)
class Reader:
    """Someone a response is written for."""

    id: str
    user_index: int  # 0: generic, or unseen in training
    text: str  # about the user; may be ""
    preference: str = ""  # what the user truly prefers, in words: for the oracle alone


def known_readers(seen: Mapping[str, int], texts: Mapping[str, str], data: Prepared | None) -> dict[str, Reader]:
    """Everyone a response can be written for, by id.

    These are the generic user, the `seen` users with their indices and the model's own `texts` about them, and the
    data's other users, who have index 0 but may have a text.
    """
    preferences = {user.id: user.preference for user in data.users} if data else {}
    known = {GENERIC: Reader(GENERIC, 0, "")}
    for user, user_index in seen.items():
        known[user] = Reader(user, user_index, texts.get(user, ""), preferences.get(user, ""))
    for other in data.users if data else []:
        known.setdefault(other.id, Reader(other.id, 0, other.text, other.preference))
    return known


def names_of(config: GenerateConfig) -> list[str]:
    """The names in `config.users`, read as a line of CSV: an id that holds a comma stands in double quotes."""
    try:
        parts = next(csv.reader([config.users], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise PrlhfError(
            f"users = '{config.users}' cannot be read: {one_line(error)}",
            "separate ids by commas; write an id with a comma or a quote as in '\"Lee, Ann\",bob'",
        ) from error
    return [name for part in parts if (name := part.strip())]


def named_users(config: GenerateConfig) -> set[str] | None:
    """The ids in `config.users`; None if it names a group, whose members it does not list."""
    names = set(names_of(config))
    return None if names & set(GROUPS) else names - {GENERIC}
