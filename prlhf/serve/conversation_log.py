"""Requests and responses, kept where that was asked for: after they were answered, by a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from prlhf.dataset import Text
from prlhf.errors import PrlhfError
from prlhf.serve.keeper import Keeping
from prlhf.serve.shapes import Partial

LOG = logging.getLogger("prlhf.serve")


class ConversationLog:
    """Keeps conversations with `keeper`. Those of a server that is killed may be lost; no request waits for them."""

    def __init__(self, keeper: Keeping) -> None:
        self._keeper = keeper
        self._thread = ThreadPoolExecutor(1, "prlhf-conversations")
        self.kept = 0
        self.lost = 0

    def add(self, user: str, prompts: Sequence[Text], choices: Sequence[Partial]) -> None:
        """Keep `prompts` and as much as was written to each: `choices`, prompt by prompt."""
        texts = [choice.text for choice in choices]
        each = len(texts) // len(prompts)
        asked = [(prompt, texts[at * each : (at + 1) * each]) for at, prompt in enumerate(prompts)]
        self._thread.submit(self._keep, user, asked)

    def settle(self) -> None:
        """Wait until what was added so far is kept or lost."""
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Write what is left, and end."""
        self._thread.shutdown(wait=True)

    def _keep(self, user: str, asked: Sequence[tuple[Text, list[str]]]) -> None:
        try:
            self._keeper.log(user, asked)
        except PrlhfError as error:
            LOG.warning("a conversation could not be kept: %s", error.message)
            self.lost += 1
        else:
            self.kept += 1
