"""What is kept of users while a run is served: choices, conversations, and what is learned from choices.

One process does so, however many answer requests: a user is learned once, and a database in WAL mode is for the
processes of one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from prlhf.adapt.rollback import undo_adaptation
from prlhf.choice_store import FILE, ChoiceStore
from prlhf.config import ServeConfig
from prlhf.dataset import Text
from prlhf.errors import PrlhfError
from prlhf.model.checkpoint import model_folder
from prlhf.progress import SILENT, Progress
from prlhf.serve.learning import Learning
from prlhf.serve.metrics import Numbers


@dataclass(frozen=True)
class KeptOf:
    """Of a user: the choices that are kept, of how many they are learned, and whether they are, or are about to be."""

    choices: int
    learned: int
    learning: bool


class Keeping(Protocol):
    """What keeps choices and conversations: `Keeper`, or what speaks to one elsewhere. Methods wait for the disk."""

    def add(self, user: str, prompt: Text, chosen: str, rejected: str) -> int:
        """Keep a choice; returns its number. When this returns, it is on disk."""

    def kept_of(self, user: str) -> KeptOf:
        """What is kept of `user`."""

    def undo(self, user: str, version: int | None) -> None:
        """Make `user` what a version was; waits until somebody who is being learned has been.

        Raises:
            PrlhfError: there is no such version, or the run cannot be written.
        """

    def log(self, user: str, asked: Sequence[tuple[Text, list[str]]]) -> None:
        """Keep prompts of a request, and what was written to each."""

    def watch(self, numbers: Numbers) -> None:
        """Show what was learned among `numbers`."""

    def close(self) -> None:
        """End after the user who is being learned."""


def place_of_choices(run: Path, config: ServeConfig) -> Path:
    """The file of the choices of `run`. Raises PrlhfError where there is no place for it."""
    if config.feedback is None and model_folder(run) == run:
        raise PrlhfError(f"{run} is a model without its run, which has no place for choices", "give --feedback FILE")
    return config.feedback or run / FILE


class Keeper(Keeping):
    """Keeps the choices of `run`, and learns users from them."""

    def __init__(self, run: Path, config: ServeConfig, progress: Progress = SILENT) -> None:
        """Raises PrlhfError if the run has no place for choices, or their file cannot be used."""
        self._run, self._every = run, config.adapt_every
        self.store = ChoiceStore(place_of_choices(run, config))
        self.learning = _learning_of(run, self.store, config, progress)

    @override
    def add(self, user: str, prompt: Text, chosen: str, rejected: str) -> int:
        number = self.store.add(user, prompt, chosen, rejected)
        if self.learning:
            self.learning.look()
        return number

    @override
    def kept_of(self, user: str) -> KeptOf:
        due = self.learning is not None and self.store.untried(user) >= self._every
        return KeptOf(*self.store.counts(user), due)

    @override
    def undo(self, user: str, version: int | None) -> None:
        with self.learning.busy if self.learning else nullcontext():
            undo_adaptation(self._run, user, version, self.store.path)

    @override
    def log(self, user: str, asked: Sequence[tuple[Text, list[str]]]) -> None:
        self.store.log(user, asked)

    @override
    def watch(self, numbers: Numbers) -> None:
        if self.learning:
            learning = self.learning
            numbers.watch("prlhf_users_learned", "How often a user was learned from choices.", lambda: learning.learned)
            numbers.watch("prlhf_users_failed", "How often learning a user failed.", lambda: learning.failed)

    @override
    def close(self) -> None:
        if self.learning:
            self.learning.close()


def _learning_of(run: Path, store: ChoiceStore, config: ServeConfig, progress: Progress) -> Learning | None:
    """What learns users from their choices, if the settings and the run allow it; the run's reason is a note."""
    if not config.adapt_every:
        return None
    try:
        return Learning(run, store, config)
    except PrlhfError as error:
        progress.note(f"choices are kept, and nobody is learned from them: {error.message}")
        return None
