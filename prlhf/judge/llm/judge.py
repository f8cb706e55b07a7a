"""`llm`, `llm:MODEL`: a language model as the judge, which reads each pair in both orders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from prlhf.config import JudgeConfig
from prlhf.config.judge import ASKING, NOT_IN_BATCHES
from prlhf.dataset import GENERIC
from prlhf.errors import Interrupted, PrlhfError
from prlhf.judge.judges import AskingJudge, judge, not_used
from prlhf.judge.llm.batch import send_batch
from prlhf.judge.llm.client import advance, send_all
from prlhf.judge.llm.cost import tokens_in
from prlhf.judge.llm.dialect import OURS, named_parts
from prlhf.judge.llm.prompt import UNKNOWN, Order, UserContexts, load_template, question
from prlhf.judge.llm.requests import ONE_REQUEST, Request, Session
from prlhf.judge.verdicts import Call, Decision, Pair, combine
from prlhf.progress import Progress
from prlhf.results import CostEstimate, ShownCall

REMINDERS = 2  # how often an answer without a verdict is asked for again
PILOT = 8  # requests that are answered first, to see whether answers are cut off
ANSWER_TOKENS = 60  # estimated length of an answer, until there are answers of the model


@judge("llm")
class LlmJudge(AskingJudge):
    """Asks a model at the server that the configuration names."""

    metavar, argument_required = "MODEL", False
    uses = JudgeConfig.keys_under(ASKING) | {"dataset"}

    @classmethod
    @override
    def check(cls, name: str, config: JudgeConfig) -> None:
        by, keys = f"--judge {config.judge}", config.given()
        if "judge_model" in keys and "llm" not in [one.strip() for one in (config.judge or "").split(",")]:
            raise not_used(config, "judge_model", by, "leave it out, or write --judge llm")
        for key in sorted(JudgeConfig.keys_under(NOT_IN_BATCHES)) if config.batch else ():
            if key in keys:
                raise not_used(config, key, "--batch", "leave it out")
        if "batch_poll" in keys and not config.batch:
            raise not_used(config, "batch_poll", by, "add --batch, or leave it out")
        if "temperature" in keys and "temperature" in named_parts(config.leave_out):
            raise not_used(config, "temperature", "--leave-out temperature", "drop one of the two")
        for key in config.extra_body:
            if key in OURS:
                raise PrlhfError(f"extra_body names {key}, which prlhf sets itself", _own_option(key))

    def __init__(self, argument: str, config: JudgeConfig) -> None:
        model = argument or config.judge_model
        if not model:
            raise PrlhfError("the judge llm lacks its model", "add --judge-model NAME, or write --judge llm:NAME")
        self.config, self._users = config, UserContexts(config.dataset)
        self.protocol = config.protocol or self._users.protocol
        self._template = load_template(self.protocol, config.prompt)
        self.session = Session(model, config)
        self._requests: list[Request] = []  # all of the call under way

    @override
    def settings(self) -> dict[str, Any]:
        config, session = self.config, self.session
        return {
            "model": session.model,
            "server": session.server.shown,
            "protocol": self.protocol,
            "prompt": str(config.prompt) if config.prompt else None,
            "order": config.order,
            "temperature": config.temperature,
            "calls": session.budget.calls,
            "cost": round(session.budget.spent, 6) if session.price else None,
            "unanswered": len(session.unanswered),
            "max_answer_tokens": config.max_answer_tokens,
        }

    # ---- before anything is sent ----

    def requests(self, pairs: Sequence[Pair]) -> list[Request]:
        """The first requests about `pairs`.

        Equal responses tie and need none. Without any information on the user, as for the generic user, the protocol is
        `plain`. Raises PrlhfError if users are named but nothing says who they are.
        """
        if self.config.protocol is None and not self.config.dataset and any(pair.user_id != GENERIC for pair in pairs):
            raise PrlhfError("who the users are is not known", "give --dataset FOLDER, or --protocol plain")
        found = []
        for number, pair in enumerate(pairs):
            user = self._users.of(pair.prompt_id, pair.user_id)
            template = self._template if user != UNKNOWN or self.config.prompt else load_template("plain", None)
            ordered = orders(pair, self.config) if pair.a.response != pair.b.response else []
            found += [Request(number, question(template, pair, user, order, self.config.seed)) for order in ordered]
        return found

    @override
    def messages(self, pair: Pair) -> list[ShownCall]:
        questions = [request.question for request in self.requests([pair])]
        return [ShownCall(order=one.order, messages=one.messages) for one in questions]

    @override
    def estimate(self, pairs: Sequence[Pair]) -> CostEstimate:
        session, requests = self.session, self.requests(pairs)
        known = session.cache.known
        missing = [request for request in requests if session.prepare(request).key not in known]
        prompt_tokens = sum(tokens_in(request.question.messages) for request in missing)
        lengths = [answer.completion_tokens for answer in known.values() if answer.completion_tokens]
        answer_tokens = round(sum(lengths) / len(lengths) * len(missing)) if lengths else ANSWER_TOKENS * len(missing)
        longest = self.config.max_answer_tokens * len(missing)
        return CostEstimate(
            model=session.model,
            server=session.server.shown,
            protocol=self.protocol,
            pairs=len(pairs),
            calls=len(missing),
            known=len(requests) - len(missing),
            prompt_tokens=prompt_tokens,
            completion_tokens=answer_tokens,
            cost=session.price.of(prompt_tokens, answer_tokens) if session.price else None,
            cost_at_most=session.price.of(prompt_tokens, longest) if session.price else None,
        )

    # ---- judging ----

    @override
    def __call__(self, pairs: Sequence[Pair], progress: Progress) -> list[Decision]:
        """The decisions on `pairs`.

        Every answer is stored when it arrives, so the same call after an error, a limit or Ctrl-C sends only the
        missing requests. Raises PrlhfError and Interrupted, which say so.
        """
        session, requests = self.session, self.requests(pairs)
        if reason := session.cache.check():
            if self.config.batch:
                raise PrlhfError(f"--batch cannot note what it submits: {reason}", "set PRLHF_CACHE to a folder")
            progress.note(f"answers cannot be kept ({reason}): if this run stops, they are lost")
        progress.start(f"judging by {session.model}", len(requests))
        try:
            unsettled = self._pilot(requests, progress)
            while unsettled:
                self._report(unsettled, progress)
                self._get(unsettled, progress)
                unsettled = [request for request in unsettled if self._ask_again(request)]
        finally:
            progress.finish()
        if session.unanswered:
            message = session.server.redact(session.unanswered[0])
            progress.note(f"{len(session.unanswered)} requests have no answer, and their pairs no verdict: {message}")
        calls: list[list[Call]] = [[] for _ in pairs]
        for request in requests:
            calls[request.pair].append(_call(request))
        return [combine(of_pair or [Call("tie")]) for of_pair in calls]

    def _pilot(self, requests: list[Request], progress: Progress) -> list[Request]:
        """Send a few requests, then all others, with the raised limit if most of the few were cut off.

        Returns the requests to send again.
        """
        self._requests = [self.session.prepare(request) for request in requests]
        few, rest = (requests, []) if self.config.batch else (requests[:PILOT], requests[PILOT:])
        self._get(few, progress)
        again = [request for request in few if self._ask_again(request)]
        raised = sum(request.raised for request in again) * 2 > len(few)
        for request in rest:
            request.raised = raised
        self._get([self.session.prepare(request) for request in rest], progress)
        return again + [request for request in rest if self._ask_again(request)]

    def _ask_again(self, request: Request) -> bool:
        """Whether to send a request again; if so it is changed to what will be sent.

        An answer that was cut off is asked for once more, with the raised limit; an answer without a verdict twice,
        with a reminder.
        """
        assert request.answer is not None
        if request.verdict is not None or request.answer.finish_reason in ONE_REQUEST:
            return False
        if request.answer.cut:
            again = not request.raised and self.session.raised_limit > self.config.max_answer_tokens
            request.raised = request.raised or again
        else:
            again = request.attempt < REMINDERS
            request.attempt += again
        self.session.prepare(request)
        return again

    def _report(self, again: Sequence[Request], progress: Progress) -> None:
        if cut := sum(request.answer.cut for request in again if request.answer):
            progress.note(
                f"{cut} answers were cut off at max_answer_tokens = {self.config.max_answer_tokens}: asking once more "
                f"with {self.session.raised_limit} (--max-answer-tokens sets it from the start)"
            )
        if left := len(again) - cut:
            progress.note(f"{left} answers hold no verdict: asking again with a reminder")

    def _get(self, requests: Sequence[Request], progress: Progress) -> None:
        """Answer all of `requests`, from the cache and by the server."""
        if not requests:
            return
        known = self.session.cache.known
        missing = {request.key: request for request in requests if request.key not in known}
        for request in requests:
            request.calls += 1
        first_time = requests[0].calls == 1  # requests that are sent again have been counted
        advance(self.session, progress, len(requests) - len(missing) if first_time else 0)
        if missing:
            try:
                send = send_batch if self.config.batch else send_all
                send(self.session, list(missing.values()), progress)
            except KeyboardInterrupt:
                raise Interrupted(self._how_to_continue()) from None
            except PrlhfError as error:
                raise PrlhfError(error.message, f"{error.hint}; {self._how_to_continue()}") from None
        if any(request.key not in known for request in requests):
            left = sum(request.key not in known for request in self._requests)
            limit = self.session.budget.limit
            raise PrlhfError(f"stopped at {limit} with {left} calls left", f"raise it; {self._how_to_continue()}")
        for request in requests:
            request.answer = known[request.key]

    def _how_to_continue(self) -> str:
        done = sum(request.key in self.session.cache.known for request in self._requests)
        return f"{done} of {len(self._requests)} answers are kept: the same command continues from there"


def orders(pair: Pair, config: JudgeConfig) -> list[Order]:
    """The orders in which to show a pair. `random` draws one by the seed, always the same for the same pair."""
    if config.order == "both":
        return ["ab", "ba"]
    if config.order == "ab":
        return ["ab"]
    draw = hashlib.sha256(f"{config.seed} {pair.prompt_id} {pair.user_id}".encode()).digest()[0] % 2
    return ["ba" if draw else "ab"]


def _call(request: Request) -> Call:
    assert request.answer is not None
    verdict, answer = request.verdict, request.answer
    first = "A" if request.question.order == "ab" else "B"
    return Call(
        verdict=verdict or "unparsed",
        order=request.question.order,
        chose_first=None if verdict in (None, "tie") else verdict == first,
        answer=answer.text,
        attempts=request.calls,
        request=request.key,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        seconds=answer.seconds,
        labels=request.question.labels,
        finish_reason=answer.finish_reason,
    )


def _own_option(key: str) -> str:
    """The hint for a parameter in extra_body that is a setting of its own."""
    if key in ("temperature", "seed"):
        return f"use --set {key}=VALUE"
    return "use --max-answer-tokens" if "tokens" in key else "leave it out"
