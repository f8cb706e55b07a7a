"""Users are learned from their choices while the server runs: by `prlhf adapt`, one at a time, in another process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from prlhf.adapt.run import adapt_run, tables_of
from prlhf.adapt.versions import read_versions
from prlhf.choice_store import ChoiceStore, export_choices
from prlhf.config import AdaptConfig, ServeConfig
from prlhf.errors import PrlhfError
from prlhf.files import scratch_dir
from prlhf.model.checkpoint import model_folder
from prlhf.model.hub_run import check_own

LOG = logging.getLogger("prlhf.serve")


class Learning:
    """A thread that learns each user of `run` after `config.adapt_every` further choices in `feedback`."""

    def __init__(self, run: Path, feedback: ChoiceStore, config: ServeConfig) -> None:
        """Raises PrlhfError if the run has nothing of each user's own to learn, or may not be changed."""
        tables_of(model_folder(run))
        check_own(run)
        self._run, self._feedback, self._config = run, feedback, config
        self._wake = threading.Event()
        self._wake.set()  # choices may have been left by an earlier server
        self._closing = False
        self.busy = threading.Lock()  # held while a user is learned and the choices are marked
        self.learned = 0  # how often somebody was
        self.failed = 0
        self._thread = threading.Thread(target=self._work, name="prlhf-learning", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """There are further choices."""
        self._wake.set()

    def close(self) -> None:
        """End after the user at hand."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closing:
                return
            for user in self._feedback.due(self._config.adapt_every):
                if self._closing:
                    return
                self._learn(user)

    def _learn(self, user: str) -> None:
        with self.busy:
            self._learn_from(user, [choice.number for choice in self._feedback.choices(user) if not choice.aside])

    def _learn_from(self, user: str, numbers: Sequence[int]) -> None:
        how = {key: getattr(self._config, key) for key in ("device", "model", "trust_remote_code")}
        try:
            # a process of its own gives all memory back, and the engine keeps its time
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                version = pool.submit(learn_user, self._run, self._feedback.path, user, how).result()
        except (PrlhfError, OSError, BrokenProcessPool) as error:
            LOG.warning("a user could not be learned: %s", type(error).__name__)
            self._feedback.mark(numbers, None)
            self.failed += 1
        else:
            self._feedback.mark(numbers, version)
            self.learned += 1


def learn_user(run: Path, feedback: Path, user: str, how: dict[str, Any]) -> int:
    """Learn `user` from all choices that are kept, in the process that runs this. Those that are known count once.

    Returns the number of the version that the user is now.
    """
    with scratch_dir("feedback") as scratch:
        file = scratch / "choices.jsonl"
        export_choices(ChoiceStore(feedback), file, user, undone=False)
        found = adapt_run(run, AdaptConfig(choices=file, user=user, bad_rows="skip", **how))
    return read_versions(model_folder(run), found["users"][0]["user_index"])[-1].number
