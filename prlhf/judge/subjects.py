"""Whom the judge speaks for: what a prepared data set knows of a user, and of one of the user's conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prlhf.dataset import GENERIC, Prepared, prompt_id, read_prepared
from prlhf.errors import PrlhfError


@dataclass(frozen=True)
class Subject:
    """Empty texts and an empty `material` where nothing is known."""

    text: str = ""  # u^t
    preference: str = ""  # what the user wants, in words
    material: dict[str, Any] = field(default_factory=dict)  # of the survey and the conversation (prep prism)


NOBODY = Subject()


class Subjects:
    """The users of a prepared data set as judges see them. Without a data set nothing is known of anybody."""

    def __init__(self, dataset: Path | None) -> None:
        self._dataset = dataset
        data = read_prepared(dataset) if dataset is not None else Prepared([], [], [], {})
        self._users = {user.id: Subject(user.text, user.preference) for user in data.users}
        self._material = {(prompt_id(row["prompt"]), row["user_id"]): row.get("material", {}) for row in data.judging}

    @property
    def protocol(self) -> str:
        """The protocol that makes most of what is known."""
        if self._material:
            return "role-play"
        return "profile" if any(user.preference or user.text for user in self._users.values()) else "plain"

    def of(self, prompt: str, user: str) -> Subject:
        """What is known of `user` when judging responses to the prompt of this id."""
        if user == GENERIC or self._dataset is None:
            return NOBODY
        if user not in self._users:
            hint = "give --dataset the data set that the users are from"
            raise PrlhfError(f"{self._dataset} has no user '{user}'", hint)
        known = self._users[user]
        return Subject(known.text, known.preference, self._material.get((prompt, user), {}))
