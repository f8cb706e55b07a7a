"""Log-probs of choices and texts, as a user, as the generic user, or under the base alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prlhf.generate.readers import Reader
from prlhf.judge.general.items import Document, MultipleChoice
from prlhf.model.encoding import Encoder
from prlhf.model.engine import in_batches
from prlhf.model.fitting import TooLong
from prlhf.model.readings import Reading
from prlhf.progress import Progress

SPACES = re.compile(r"\s+")  # of what stands between them words are counted, also if it is empty
LogProbs = Callable[[Sequence[Reading]], Tensor]  # readings -> log-probs [n] in nats


class Scores(NamedTuple):
    """What one reader makes of a file: of N questions whether it is right, of M texts their negative log-likelihood."""

    right: NDArray[np.float64]  # [N], by log-prob
    right_by_length: NDArray[np.float64]  # [N], by log-prob per character of the choice
    nats: NDArray[np.float64]  # [M]
    tokens: NDArray[np.float64]  # [M]
    sizes: NDArray[np.float64]  # [M], in bytes of UTF-8
    words: NDArray[np.float64]  # [M], parts between white space


class Ids:
    """Token ids of questions and texts as `encoder` reads plain text, within its limit."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._tokenizer = encoder, encoder.tokenizer
        self._bos = replace(encoder, conversational=None).prompt("", encoder.limit, "")
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        self._start = self._bos or [eos if bos is None else bos]
        self._room = encoder.limit - encoder.user_tokens
        self.cut = 0  # contexts that lost their beginning

    def choices(self, question: MultipleChoice, reader: Reader) -> list[Reading]:
        """A reading for each choice: its tokens are those that the context does not have, read as one text.

        Spaces at the end of the context are read with the choice. Without a context, a choice stands behind BOS, or EOS
        if there is no BOS. Raises TooLong if a choice leaves no room for a token of the context.
        """
        context = question.context.rstrip()
        gap = question.context[len(context) :] + question.delimiter
        before, found = self._raw(context), []
        for choice in question.choices:
            whole = self._raw(context + gap + choice)
            kept = whole[: len(before)] == before
            after = whole[len(before) :] if kept else self._raw(gap + choice)
            found.append(self._reading(reader, before, after, question.name, None if before else self._start))
        return found

    def windows(self, document: Document, reader: Reader) -> list[Reading]:
        """A text as windows that fill the context; no token is scored twice.

        The first begins with BOS, also where the tokenizer has one and does not add it, or with EOS if there is no BOS.
        The others begin with the last token of the one before, and the last one with as many as there is room for.
        """
        ids = self._raw(document.text)
        size = self._room - len(self._encoder.text(reader.text)) - len(self._start)
        if size < 1:
            raise TooLong(document.name, "the text about the user fills the context", "leave such users out", 1 - size)
        starts = range(0, len(ids), size)
        ends = [min(at + size, len(ids)) for at in starts]
        return [
            self._reading(
                reader,
                ids[max(0, end - size - 1) : at],
                ids[at:end],
                document.name,
                self._start if at == 0 else [],
            )
            for at, end in zip(starts, ends, strict=True)
        ]

    def _reading(
        self, reader: Reader, before: list[int], after: list[int], name: str, begin: list[int] | None = None
    ) -> Reading:
        """`after` behind `before`, which loses its beginning where needed, behind BOS and text of the reader."""
        head = self._bos if begin is None else begin
        text = self._encoder.text(reader.text)
        room = self._room - len(text) - len(head) - len(after)
        if room < min(1, len(before)):
            raise TooLong(name, f"a choice of '{name}' has {len(after)} tokens, too many", "leave it out", 1 - room)
        self.cut += len(before) > room
        kept = before[len(before) - min(room, len(before)) :]
        text, prompt = self._encoder.before(text, head + kept)
        return Reading(reader.user_index, tuple(text + prompt), tuple(after))

    def _raw(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def scores_of(
    model: Any,
    run: LogProbs,
    items: tuple[Sequence[MultipleChoice], Sequence[Document]],
    groups: tuple[Sequence[list[Reading]], Sequence[list[Reading]]],
    batch_size: int,
    progress: Progress,
) -> Scores:
    """What `run` says of questions and texts, whose readings are `groups`; `batch_size` items at a time."""
    (asked, texts), (choices, windows) = items, groups
    readings = [*choices, *windows]

    def read(chunk: list[int]) -> list[NDArray[np.float64]]:
        values = iter(run([one for number in chunk for one in readings[number]]).tolist())
        return [np.array([next(values) for _ in readings[number]]) for number in chunk]

    lengths = [max(len(one.before) + len(one.response) for one in group) for group in readings]
    found = in_batches(model, lengths, batch_size, read, progress)
    picks = [best(values, one.choices) for values, one in zip(found, asked, strict=False)]
    right = [[pick == one.gold for pick in two] for two, one in zip(picks, asked, strict=True)]
    by_log_prob, by_length = np.array(right, dtype=np.float64).reshape(-1, 2).T
    return Scores(
        right=by_log_prob,
        right_by_length=by_length,
        nats=np.array([-values.sum() for values in found[len(asked) :]], dtype=np.float64),
        tokens=np.array([sum(len(one.response) for one in group) for group in windows], dtype=np.float64),
        sizes=np.array([len(one.text.encode()) for one in texts], dtype=np.float64),
        words=np.array([len(SPACES.split(one.text)) for one in texts], dtype=np.float64),
    )


def best(log_probs: NDArray[np.float64], choices: Sequence[str]) -> tuple[int, int]:
    """The most probable choice, and the one with the highest log-prob per character, which longer ones can win."""
    lengths = np.array([len(choice) for choice in choices])
    return int(np.argmax(log_probs)), int(np.argmax(log_probs / lengths))
