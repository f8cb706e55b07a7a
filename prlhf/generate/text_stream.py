"""A response as text while it is written: after each token, what can be shown of it for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prlhf.generate.decoding import End

HALF = "\ufffd"  # what stands for the bytes of a character whose last token is still to come


class TextStream:
    """The text of one response, token by token; its pieces joined are the text that `decoding.written` returns.

    What may be the beginning of a stop text is held back until more is known. The text of a token depends on those
    before it, so that the tokens since the piece before last are decoded together.
    """

    def __init__(self, tokenizer: Any, end: End, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._end = tokenizer, end
        self._stops = [stop for stop in (*stops, end.words) if stop]
        self._ids: list[int] = []
        self._from, self._to = 0, 0  # tokens of the last piece
        self._held = ""  # text that may be the beginning of a stop text
        self.finished = False  # whether the model ended the response

    @property
    def tokens(self) -> int:
        """How many tokens there were, without one that ended the response."""
        return len(self._ids)

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` is there, often none."""
        if token in self._end.ids:
            self.finished = True
            return self.rest()
        self._ids.append(token)
        new = self._new()
        if new.endswith(HALF):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return self._shown(new)

    def rest(self) -> str:
        """What was held back, at the end of the response."""
        piece = self._shown(self._new()) + self._held
        self._from = self._to = len(self._ids)
        self._held = ""
        return piece

    def _new(self) -> str:
        before = self._decode(self._ids[self._from : self._to])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _shown(self, new: str) -> str:
        """`new` after what was held back, without what may be, or is, a stop text."""
        text = self._held + new
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.finished, self._held = True, ""
            self._from = self._to = len(self._ids)
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
