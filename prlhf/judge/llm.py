"""A language model as the judge: every pair in both orders, asked again where the answer holds no verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prlhf.config import JudgeConfig, cache_folder
from prlhf.errors import Interrupted, PrlhfError
from prlhf.judge.answers import Answer, Answers, key_of
from prlhf.judge.client import Body, Client, run_to_end
from prlhf.judge.cost import Budget, Price, no_price, price_of, tokens_in
from prlhf.judge.decisions import Call, Decision, combine
from prlhf.judge.pairs import Pair
from prlhf.judge.questions import (
    Order,
    Question,
    Side,
    answer_format,
    load_template,
    question,
    reminded,
    verdict_in,
)
from prlhf.judge.server import Server, server_of
from prlhf.judge.subjects import NOBODY, Subjects
from prlhf.progress import Progress
from prlhf.records import GENERIC

ATTEMPTS = 3  # an answer without a verdict is asked for again twice
ANSWER_TOKENS = 60  # of an answer as asked for, in estimates


@dataclass
class Asked:
    """A question on its way to a verdict."""

    pair: int
    question: Question
    attempt: int = 0
    body: Body | None = None
    key: str = ""
    answer: Answer | None = None


class LlmJudge:
    """Judges pairs by asking `model` at the server that the configuration names."""

    def __init__(self, model: str | None, config: JudgeConfig) -> None:
        if not model:
            raise PrlhfError("the judge llm lacks its model", "add --judge-model NAME, or write --judge llm:NAME")
        self.model, self.config, self._subjects = model, config, Subjects(config.dataset)
        self.protocol = config.protocol or self._subjects.protocol
        self._template = load_template(self.protocol, config.prompt)
        self.server: Server = server_of(config.base_url)
        self.price: Price | None = price_of(model, config.prices, config.batch)
        if config.max_cost is not None and self.price is None:
            raise no_price(model, config.prices)
        self.budget = Budget(self.price, config.max_cost, config.max_calls)

    def settings(self) -> dict[str, Any]:
        """What a reader of the results must know of this judge."""
        config = self.config
        return {
            "model": self.model,
            "server": self.server.shown,
            "protocol": self.protocol,
            "prompt": str(config.prompt) if config.prompt else None,
            "order": config.order,
            "temperature": config.temperature,
            "calls": self.budget.calls,
            "cost": round(self.budget.spent, 6) if self.price else None,
        }

    def questions(self, pairs: Sequence[Pair]) -> list[Asked]:
        """Every call that judging `pairs` begins with.

        Equal responses need none: they tie. Of whom nothing is known, such as the generic user, the judge is asked as
        of nobody.
        """
        if self.config.protocol is None and not self.config.dataset and any(pair.user_id != GENERIC for pair in pairs):
            raise PrlhfError("who the users are is not known", "give --dataset FOLDER, or --protocol plain")
        found = []
        for number, pair in enumerate(pairs):
            subject = self._subjects.of(pair.prompt_id, pair.user_id)
            template = self._template if subject != NOBODY or self.config.prompt else load_template("plain", None)
            ordered = orders(pair, self.config) if pair.a.response != pair.b.response else []
            found += [Asked(number, question(template, pair, subject, order, self.config.seed)) for order in ordered]
        return found

    def estimate(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Calls, tokens and dollars of judging `pairs`, less what is known already. Sends nothing."""
        asked = self.questions(pairs)
        known = self._answers.known
        missing = [one for one in asked if self._prepare(one).key not in known]
        prompt_tokens = sum(tokens_in(one.question.messages) for one in missing)
        answer_tokens = ANSWER_TOKENS * len(missing)
        return {
            "model": self.model,
            "server": self.server.shown,
            "protocol": self.protocol,
            "pairs": len(pairs),
            "calls": len(missing),
            "known": len(asked) - len(missing),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": answer_tokens,
            "cost": self.price.of(prompt_tokens, answer_tokens) if self.price else None,
        }

    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        """The verdicts on `pairs`.

        Every answer is kept as it comes, so the same call after an error, a limit or Ctrl-C asks only for what is
        missing. Raises PrlhfError and Interrupted with a word on how to go on.
        """
        asked, answers = self.questions(pairs), self._answers
        progress.start(f"judging by {self.model}", len(asked))
        try:
            open_ones = asked
            for attempt in range(ATTEMPTS):
                if attempt and open_ones:
                    progress.note(f"{len(open_ones)} answers hold no verdict: asking again, time {attempt}")
                for one in open_ones:
                    one.attempt = attempt
                    self._prepare(one)
                self._get(open_ones, answers, progress)
                open_ones = [one for one in open_ones if self._verdict(one) is None]
        finally:
            progress.finish()
        calls: list[list[Call]] = [[] for _ in pairs]
        for one in asked:
            calls[one.pair].append(self._call(one))
        return [combine(mine or [Call("tie")]) for mine in calls]

    def _get(self, asked: Sequence[Asked], answers: Answers, progress: Progress) -> None:
        """Answer all of `asked`, from what is known and from the server."""
        if not asked:
            return
        missing = {one.key: one for one in asked if one.key not in answers.known}
        self._advance(progress, asked[0].attempt, len(asked) - len(missing))
        if missing:
            try:
                self._fetch(list(missing.values()), answers, progress)
            except KeyboardInterrupt:
                raise Interrupted(self._kept(asked, answers)) from None
            except PrlhfError as error:
                raise PrlhfError(error.message, f"{error.hint}; {self._kept(asked, answers)}") from None
        if left := sum(one.key not in answers.known for one in asked):
            kept = self._kept(asked, answers)
            raise PrlhfError(f"stopped at {self.budget.limit} with {left} calls left", f"raise it; {kept}")
        for one in asked:
            one.answer = answers.known[one.key]

    def _fetch(self, missing: list[Asked], answers: Answers, progress: Progress) -> None:
        if self.config.batch:
            from prlhf.judge.batch import fetch

            fetch(self, missing, answers, progress)
            return
        estimates = [self.estimated_cost(one) for one in missing]

        def got(number: int, answer: Answer | None) -> None:
            self.budget.settle(estimates[number], answer)
            if answer is not None:
                answers.add(missing[number].key, answer)
                self._advance(progress, missing[number].attempt, 1)

        bodies = [one.body or {} for one in missing]
        client = Client(self.server, self.config)
        run_to_end(client.ask_all(bodies, lambda number: self.budget.take(estimates[number]), got))

    def _advance(self, progress: Progress, attempt: int, count: int) -> None:
        """Calls that are asked again move nothing but the cost: they have been counted."""
        progress.advance(0 if attempt else count, **({"cost $": self.budget.spent} if self.price else {}))

    def estimated_cost(self, one: Asked) -> float:
        """An upper bound of a call's price in dollars; 0 where no price is known."""
        return self.price.of(tokens_in(one.question.messages), self.config.max_answer_tokens) if self.price else 0.0

    def _prepare(self, one: Asked) -> Asked:
        one.body = {
            "model": self.model,
            "messages": reminded(one.question, one.attempt),
            "temperature": self.config.temperature,
            "max_completion_tokens": self.config.max_answer_tokens,
            "seed": self.config.seed,
            "response_format": answer_format(one.question.labels),
        }
        one.key = key_of(self.server.shown, one.body)
        return one

    def _verdict(self, one: Asked) -> Side | None:
        return verdict_in(one.answer.text if one.answer else None, one.question.labels)

    def _call(self, one: Asked) -> Call:
        assert one.answer is not None
        verdict = self._verdict(one)
        first = "A" if one.question.order == "ab" else "B"
        return Call(
            verdict=verdict or "unparsed",
            order=one.question.order,
            chose_first=None if verdict in (None, "tie") else verdict == first,
            answer=one.answer.text,
            attempts=one.attempt + 1,
            request=one.key,
            prompt_tokens=one.answer.prompt_tokens,
            completion_tokens=one.answer.completion_tokens,
            seconds=one.answer.seconds,
            labels=one.question.labels,
        )

    @cached_property
    def _answers(self) -> Answers:
        name = hashlib.sha256(f"{self.server.shown} {self.model}".encode()).hexdigest()[:16]
        return Answers(cache_folder() / "judge" / f"{name}.jsonl")

    def _kept(self, asked: Sequence[Asked], answers: Answers) -> str:
        done = sum(one.key in answers.known for one in asked)
        return f"{done} of {len(asked)} answers are kept: the same command goes on from there"


def orders(pair: Pair, config: JudgeConfig) -> list[Order]:
    """The orders to show a pair in. `random` draws one by the seed, the same for the same pair."""
    if config.order == "both":
        return ["ab", "ba"]
    if config.order == "ab":
        return ["ab"]
    draw = hashlib.sha256(f"{config.seed} {pair.prompt_id} {pair.user_id}".encode()).digest()[0] % 2
    return ["ba" if draw else "ab"]
