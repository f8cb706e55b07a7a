"""A language model as the judge: every pair in both orders, asked again where the answer holds no verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prlhf.config import JudgeConfig, cache_folder
from prlhf.dataset import GENERIC
from prlhf.errors import Interrupted, PrlhfError
from prlhf.judge.answers import Answer, Answers, key_of
from prlhf.judge.client import Client, run_to_end
from prlhf.judge.cost import Budget, Price, no_price, price_of, tokens_in
from prlhf.judge.decisions import Call, Decision, combine
from prlhf.judge.dialect import Body, Dialect
from prlhf.judge.faults import Fault
from prlhf.judge.options import left_out
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

REMINDERS = 2  # an answer without a verdict is asked for again twice
RAISED = 4, 4096  # a cut answer's next allowance: so many times as much, and so much at least
PILOT = 8  # requests that show whether answers are cut off, before all others are asked
LOST_IN_A_ROW = 10  # requests without an answer after which the server is not asked further
LOST = ("filtered", "empty")  # faults of one request, not of the server
ANSWER_TOKENS = 60  # of an answer as asked for, in estimates, until there are answers to go by


@dataclass
class Asked:
    """A question on its way to a verdict: reminded of the form `attempt` times, at the raised allowance or not."""

    pair: int
    question: Question
    attempt: int = 0
    raised: bool = False
    body: Body | None = None
    key: str = ""
    answer: Answer | None = None
    calls: int = 0


class LlmJudge:
    """Judges pairs by asking `model` at the server that the configuration names."""

    def __init__(self, model: str | None, config: JudgeConfig) -> None:
        if not model:
            raise PrlhfError("the judge llm lacks its model", "add --judge-model NAME, or write --judge llm:NAME")
        self.model, self.config, self._subjects = model, config, Subjects(config.dataset)
        self.protocol = config.protocol or self._subjects.protocol
        self._template = load_template(self.protocol, config.prompt)
        self.server: Server = server_of(config.base_url, config.api_version)
        self._spoken = Dialect().without(left_out(config))
        self.dialect = Dialect()
        self._raised = raised_tokens(config)
        self._answered = False  # whether the server answered any request
        self._asked: list[Asked] = []  # all questions of the call under way
        self._lost: list[str] = []  # what was said in place of answers
        self._in_a_row = 0
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
            "unanswered": len(self._lost),
            "max_answer_tokens": config.max_answer_tokens,
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
        wrote = [answer.completion_tokens for answer in known.values() if answer.completion_tokens]
        answer_tokens = round(sum(wrote) / len(wrote) * len(missing)) if wrote else ANSWER_TOKENS * len(missing)
        longest = self.config.max_answer_tokens * len(missing)
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
            "cost_at_most": self.price.of(prompt_tokens, longest) if self.price else None,
        }

    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        """The verdicts on `pairs`.

        Every answer is kept as it comes, so the same call after an error, a limit or Ctrl-C asks only for what is
        missing. Raises PrlhfError and Interrupted with a word on how to go on.
        """
        asked, answers = self.questions(pairs), self._answers
        if reason := answers.check():
            if self.config.batch:
                raise PrlhfError(f"--batch cannot write down what it submits: {reason}", "set PRLHF_CACHE to a folder")
            progress.note(f"answers cannot be kept ({reason}): if this run stops, they are lost")
        progress.start(f"judging by {self.model}", len(asked))
        try:
            open_ones = self._pilot(asked, answers, progress)
            while open_ones:
                self._tell(open_ones, progress)
                self._get(open_ones, answers, progress)
                open_ones = [one for one in open_ones if self._again(one)]
        finally:
            progress.finish()
        if self._lost:
            said = self.server.redact(self._lost[0])
            progress.note(f"{len(self._lost)} requests have no answer, and their pairs no verdict: {said}")
        calls: list[list[Call]] = [[] for _ in pairs]
        for one in asked:
            calls[one.pair].append(self._call(one))
        return [combine(mine or [Call("tie")]) for mine in calls]

    def _pilot(self, asked: list[Asked], answers: Answers, progress: Progress) -> list[Asked]:
        """Ask a few, then all others: at the raised allowance if most of the few were cut off.

        Returns those to ask again.
        """
        self._asked = [self._prepare(one) for one in asked]
        few, rest = (asked, []) if self.config.batch else (asked[:PILOT], asked[PILOT:])
        self._get(few, answers, progress)
        again = [one for one in few if self._again(one)]
        raised = sum(one.raised for one in again) * 2 > len(few)
        for one in rest:
            one.raised = raised
        self._get([self._prepare(one) for one in rest], answers, progress)
        return again + [one for one in rest if self._again(one)]

    def _again(self, one: Asked) -> bool:
        """Whether to ask again; the question is then as it will be asked.

        What was cut off is asked once more, with a raised allowance; what holds no verdict twice, with a reminder.
        """
        assert one.answer is not None
        if self._verdict(one) is not None or one.answer.finish_reason in LOST:
            return False
        if one.answer.cut:
            again = not one.raised and self._raised > self.config.max_answer_tokens
            one.raised = one.raised or again
        else:
            again = one.attempt < REMINDERS
            one.attempt += again
        self._prepare(one)
        return again

    def _tell(self, again: Sequence[Asked], progress: Progress) -> None:
        assert all(one.answer for one in again)
        if cut := sum(one.answer.cut for one in again if one.answer):
            progress.note(
                f"{cut} answers were cut off at max_answer_tokens = {self.config.max_answer_tokens}: asking once more "
                f"with {self._raised} (--max-answer-tokens sets it from the start)"
            )
        if left := len(again) - cut:
            progress.note(f"{left} answers hold no verdict: asking again with a reminder")

    def _get(self, asked: Sequence[Asked], answers: Answers, progress: Progress) -> None:
        """Answer all of `asked`, from what is known and from the server."""
        if not asked:
            return
        missing = {one.key: one for one in asked if one.key not in answers.known}
        for one in asked:
            one.calls += 1
        self._advance(progress, asked[0].calls > 1, len(asked) - len(missing))
        if missing:
            try:
                self._fetch(list(missing.values()), answers, progress)
            except KeyboardInterrupt:
                raise Interrupted(self._kept(answers)) from None
            except PrlhfError as error:
                raise PrlhfError(error.message, f"{error.hint}; {self._kept(answers)}") from None
        if any(one.key not in answers.known for one in asked):
            left = sum(one.key not in answers.known for one in self._asked)
            kept = self._kept(answers)
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
                self._in_a_row = 0
                self._advance(progress, missing[number].calls > 1, 1)

        def lost(number: int, fault: Fault) -> bool:
            return self.lost(missing[number], fault, answers)

        bodies = [one.body or {} for one in missing]
        client = Client(self.server, self.config, self.dialect, progress.note, self._answered)
        try:
            run_to_end(client.ask_all(bodies, lambda number: self.budget.take(estimates[number]), got, lost))
        finally:
            self.dialect, self._answered = client.dialect, client.answered

    def lost(self, one: Asked, fault: Fault, answers: Answers) -> bool:
        """Whether the others go on without an answer to this request.

        They do where it was filtered, where the reply was empty, and where the server does not grant the raised
        allowance (the cut answer stays). Nothing of it is kept.
        """
        if one.raised and fault.status in (400, 413, 422) and one.answer is not None:
            answers.add(one.key, one.answer, keep=False)
            return True
        self._in_a_row += 1
        if fault.kind not in LOST or self._in_a_row >= LOST_IN_A_ROW:
            return False
        self._lost.append(fault.said)
        answers.add(one.key, Answer(None, 0, 0, 0.0, fault.kind), keep=False)
        return True

    def _advance(self, progress: Progress, again: bool, count: int) -> None:
        """Calls that are asked again move nothing but the cost: they have been counted."""
        progress.advance(0 if again else count, **({"cost $": self.budget.spent} if self.price else {}))

    def estimated_cost(self, one: Asked) -> float:
        """An upper bound of a call's price in dollars; 0 where no price is known."""
        return self.price.of(tokens_in(one.question.messages), self._allowed(one)) if self.price else 0.0

    def _allowed(self, one: Asked) -> int:
        return self._raised if one.raised else self.config.max_answer_tokens

    def _prepare(self, one: Asked) -> Asked:
        """Fill in the request. One whose answer at the raised allowance is known, and only that, is that request."""
        one.body, one.key = self._request(one)
        if not one.raised and one.key not in self._answers.known:
            raised = replace(one, raised=True)
            raised.body, raised.key = self._request(raised)
            if raised.key in self._answers.known:
                one.raised, one.body, one.key = True, raised.body, raised.key
        return one

    def _request(self, one: Asked) -> tuple[Body, str]:
        body = {
            "model": self.model,
            "messages": reminded(one.question, one.attempt),
            "temperature": self.config.temperature,
            "max_completion_tokens": self._allowed(one),
            "seed": self.config.seed,
            "response_format": answer_format(one.question.labels),
        }
        body = self._spoken.speak(body) | self.config.extra_body
        return body, key_of(self.server.shown, body)

    def _verdict(self, one: Asked) -> Side | None:
        return verdict_in(one.answer.text, one.question.labels, one.answer.cut) if one.answer else None

    def _call(self, one: Asked) -> Call:
        assert one.answer is not None
        verdict = self._verdict(one)
        first = "A" if one.question.order == "ab" else "B"
        return Call(
            verdict=verdict or "unparsed",
            order=one.question.order,
            chose_first=None if verdict in (None, "tie") else verdict == first,
            answer=one.answer.text,
            attempts=one.calls,
            request=one.key,
            prompt_tokens=one.answer.prompt_tokens,
            completion_tokens=one.answer.completion_tokens,
            seconds=one.answer.seconds,
            labels=one.question.labels,
            finish_reason=one.answer.finish_reason,
        )

    @cached_property
    def _answers(self) -> Answers:
        name = hashlib.sha256(f"{self.server.shown} {self.model}".encode()).hexdigest()[:16]
        return Answers(cache_folder() / "judge" / f"{name}.jsonl")

    def _kept(self, answers: Answers) -> str:
        done = sum(one.key in answers.known for one in self._asked)
        return f"{done} of {len(self._asked)} answers are kept: the same command goes on from there"


def orders(pair: Pair, config: JudgeConfig) -> list[Order]:
    """The orders to show a pair in. `random` draws one by the seed, the same for the same pair."""
    if config.order == "both":
        return ["ab", "ba"]
    if config.order == "ab":
        return ["ab"]
    draw = hashlib.sha256(f"{config.seed} {pair.prompt_id} {pair.user_id}".encode()).digest()[0] % 2
    return ["ba" if draw else "ab"]


def raised_tokens(config: JudgeConfig) -> int:
    """The allowance that a cut answer is asked for with once more."""
    factor, least = RAISED
    return config.raised_answer_tokens or max(factor * config.max_answer_tokens, least)
