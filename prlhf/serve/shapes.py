"""Responses as OpenAI's clients read them: whole ones and chunks of streams, of both kinds of requests."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from typing_extensions import override

from prlhf.generate.sampling import TokenScore

Scores = Sequence[tuple[int, TokenScore]]
LOWEST = -9999.0  # what stands for the log-prob of a token that cannot be: JSON has no infinity
HALF = "\ufffd"  # in the text of a token that is a part of a character


@dataclass
class Partial:
    """A response so far."""

    text: str = ""
    finish: str | None = None
    tokens: int = 0
    scored: list[tuple[int, TokenScore]] = field(default_factory=list)
    reused: int = 0  # tokens of its prompt that were read before


class ApiShape(ABC):
    """The answers to one request for `model`; `top`: whether log-probs are asked for."""

    object_whole: str
    object_chunk: str
    prefix: str

    def __init__(self, model: str, tokenizer: Any, top: int | None) -> None:
        self.head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.object_whole,
            "created": int(time.time()),
            "model": model,
        }
        self._tokenizer, self._top = tokenizer, top

    def whole(self, choices: Sequence[Partial], prompts: Sequence[int]) -> dict[str, Any]:
        """The answer to a request without streaming."""
        found = [self.choice(at, choice) for at, choice in enumerate(choices)]
        return self.head | {"choices": found, "usage": usage(choices, prompts)}

    def first(self, at: int) -> dict[str, Any] | None:  # noqa: B027  not all streams have one
        """What a stream begins with."""

    def chunk(self, at: int, text: str, scored: Scores, finish: str | None) -> dict[str, Any]:
        """More of the response `at`."""
        return self._chunk([self.delta(at, text, scored, finish)])

    def last(self, choices: Sequence[Partial], prompts: Sequence[int]) -> dict[str, Any]:
        """The numbers of tokens at the end of a stream."""
        return self._chunk([]) | {"usage": usage(choices, prompts)}

    @abstractmethod
    def choice(self, at: int, choice: Partial) -> dict[str, Any]:
        """A whole response."""

    @abstractmethod
    def delta(self, at: int, text: str, scored: Scores, finish: str | None) -> dict[str, Any]:
        """A part of a response."""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.head | {"object": self.object_chunk, "choices": choices}

    def _word(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


class ChatShape(ApiShape):
    """Of /v1/chat/completions."""

    object_whole, object_chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    @override
    def choice(self, at: int, choice: Partial) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        scores = self._scores(choice.scored)
        return {"index": at, "message": message, "logprobs": scores, "finish_reason": choice.finish}

    @override
    def first(self, at: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": at, "delta": delta, "logprobs": None, "finish_reason": None}])

    @override
    def delta(self, at: int, text: str, scored: Scores, finish: str | None) -> dict[str, Any]:
        delta = {"content": text} if text or finish is None else {}
        return {"index": at, "delta": delta, "logprobs": self._scores(scored), "finish_reason": finish}

    def _scores(self, scored: Scores) -> dict[str, Any] | None:
        if self._top is None:
            return None
        content = [
            self._token(token, one.log_prob) | {"top_logprobs": [self._token(*each) for each in one.top]}
            for token, one in scored
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        word = self._word(token)
        return {"token": word, "logprob": max(log_prob, LOWEST), "bytes": None if HALF in word else list(word.encode())}


class TextShape(ApiShape):
    """Of /v1/completions."""

    object_whole, object_chunk, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, model: str, tokenizer: Any, top: int | None) -> None:
        super().__init__(model, tokenizer, top)
        self._lengths: defaultdict[int, int] = defaultdict(int)  # characters of the tokens so far, by response

    @override
    def choice(self, at: int, choice: Partial) -> dict[str, Any]:
        return self.delta(at, choice.text, choice.scored, choice.finish)

    @override
    def delta(self, at: int, text: str, scored: Scores, finish: str | None) -> dict[str, Any]:
        return {"index": at, "text": text, "logprobs": self._scores(at, scored), "finish_reason": finish}

    def _scores(self, at: int, scored: Scores) -> dict[str, Any] | None:
        if self._top is None:
            return None
        words = [self._word(token) for token, _ in scored]
        *offsets, self._lengths[at] = accumulate(map(len, words), initial=self._lengths[at])
        top = [{self._word(token): max(value, LOWEST) for token, value in one.top} for _, one in scored]
        log_probs = [max(one.log_prob, LOWEST) for _, one in scored]
        return {"tokens": words, "token_logprobs": log_probs, "top_logprobs": top, "text_offset": offsets}


def usage(choices: Sequence[Partial], prompts: Sequence[int]) -> dict[str, Any]:
    """The numbers of tokens, for `prompts` of so many each, which count once, however many responses they have.

    `cached_tokens` had been read for earlier requests.
    """
    written, read = sum(choice.tokens for choice in choices), sum(prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": reused(choices, prompts)},
    }


def reused(choices: Sequence[Partial], prompts: Sequence[int]) -> int:
    """How many tokens of the prompts were read before; each has as many of `choices`, which it stands before."""
    of_each = len(choices) // len(prompts)
    lots = [choices[at * of_each :][:of_each] for at in range(len(prompts))]
    return sum(min(choice.reused for choice in lot) for lot in lots)
