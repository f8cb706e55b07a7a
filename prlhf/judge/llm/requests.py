"""Requests to the server, and the session: what all requests of one judge share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

from prlhf.config import JudgeConfig
from prlhf.files import cache_folder
from prlhf.judge.llm.answers import Side, verdict_in
from prlhf.judge.llm.cache import Answer, AnswerCache, request_key
from prlhf.judge.llm.cost import Budget, Price, no_price, price_of, tokens_in
from prlhf.judge.llm.dialect import Body, Dialect, named_parts
from prlhf.judge.llm.prompt import Question, answer_format, reminded
from prlhf.judge.llm.replies import Fault
from prlhf.judge.llm.server import Server, server_of

RAISED_FACTOR, RAISED_LEAST = 4, 4096  # the raised limit of an answer that was cut off: 4 times, and at least 4096
MAX_UNANSWERED = 10  # requests without an answer in a row, after which no more are sent
ONE_REQUEST = ("filtered", "empty")  # faults of one request, not of the server


@dataclass
class Request:
    """A question on its way to a verdict."""

    pair: int  # the number of its pair
    question: Question
    attempt: int = 0  # how often the model was reminded of the form
    raised: bool = False  # whether the answer has the raised limit of tokens
    body: Body = field(default_factory=dict)
    key: str = ""  # hash of address and body
    answer: Answer | None = None
    calls: int = 0  # how often an answer was asked for

    @property
    def verdict(self) -> Side | None:
        """The verdict of the answer; None if there is no answer, or no verdict in it."""
        return verdict_in(self.answer.text, self.question.labels, self.answer.cut) if self.answer else None


class Session:
    """The server and what it accepts, the cache of its answers, the budget, and the requests that got no answer."""

    def __init__(self, model: str, config: JudgeConfig) -> None:
        self.model, self.config = model, config
        self.server: Server = server_of(config.base_url, config.api_version)
        self.dialect = Dialect()  # what the server accepts, as far as it is known
        self.answered = False  # whether the server has answered any request
        self.unanswered: list[str] = []  # the server's words in place of an answer
        self._in_a_row = 0
        self._chosen = Dialect().without(named_parts(config.leave_out))  # part of the request, and so of its key
        self.price: Price | None = price_of(model, config.prices, config.batch)
        if config.max_cost is not None and self.price is None:
            raise no_price(model, config.prices)
        self.budget = Budget(self.price, config.max_cost, config.max_calls)

    @cached_property
    def cache(self) -> AnswerCache:
        """The answers of this model at this server."""
        name = hashlib.sha256(f"{self.server.shown} {self.model}".encode()).hexdigest()[:16]
        return AnswerCache(cache_folder() / "judge" / f"{name}.jsonl")

    @property
    def raised_limit(self) -> int:
        """The number of tokens that an answer may have after it was cut off."""
        config = self.config
        return config.raised_answer_tokens or max(RAISED_FACTOR * config.max_answer_tokens, RAISED_LEAST)

    def prepare(self, request: Request) -> Request:
        """Fill in the body and the key. If only the answer with the raised limit is cached, that is the request."""
        self._fill_in(request)
        if not request.raised and request.key not in self.cache.known:
            raised = replace(request, raised=True)
            self._fill_in(raised)
            if raised.key in self.cache.known:
                request.raised, request.body, request.key = True, raised.body, raised.key
        return request

    def _fill_in(self, request: Request) -> None:
        body = {
            "model": self.model,
            "messages": reminded(request.question, request.attempt),
            "temperature": self.config.temperature,
            "max_completion_tokens": self._limit(request),
            "seed": self.config.seed,
            "response_format": answer_format(request.question.labels),
        }
        request.body = self._chosen.speak(body) | self.config.extra_body
        request.key = request_key(self.server.shown, request.body)

    def _limit(self, request: Request) -> int:
        return self.raised_limit if request.raised else self.config.max_answer_tokens

    def estimated_cost(self, request: Request) -> float:
        """An upper bound of a request's cost in US dollars; 0 if the price is not known."""
        return self.price.of(tokens_in(request.question.messages), self._limit(request)) if self.price else 0.0

    def take(self, request: Request) -> bool:
        """Count a request; False if it would exceed a limit of the budget."""
        return self.budget.take(self.estimated_cost(request))

    def settle(self, request: Request, answer: Answer | None) -> None:
        """Count what a request has cost (None: no answer, no cost)."""
        self.budget.settle(self.estimated_cost(request), answer)

    def keep(self, request: Request, answer: Answer) -> None:
        """Store an answer. Raises PrlhfError if the cache cannot be written."""
        self.cache.add(request.key, answer)
        self._in_a_row = 0

    def give_up(self, request: Request, fault: Fault) -> bool:
        """Go on without an answer to this request; False if the fault concerns the others, too.

        That is possible if a filter refused the request, if the reply was empty, and if the server does not grant the
        raised limit (the answer that was cut off stays). The cache file gets nothing, so the next run asks again.
        """
        if request.raised and fault.status in (400, 413, 422) and request.answer is not None:
            self.cache.add(request.key, request.answer, keep=False)
            return True
        self._in_a_row += 1
        if fault.kind not in ONE_REQUEST or self._in_a_row >= MAX_UNANSWERED:
            return False
        self.unanswered.append(fault.message)
        self.cache.add(request.key, Answer(None, 0, 0, 0.0, fault.kind), keep=False)
        return True
