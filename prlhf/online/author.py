"""Writes the candidates of a round with the policy in training, and measures them: rewards and log-probs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice

from torch import Tensor
from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.generate.best_of import load_best_of
from prlhf.generate.decoding import Written
from prlhf.generate.requests import WriteRequest
from prlhf.model.checkpoint import Policy
from prlhf.model.engine import in_batches
from prlhf.model.readings import Reading
from prlhf.model.rewards import ResponseReader, Rewards
from prlhf.online.candidates import Candidate, Ranked, encoded, groups_of, in_order
from prlhf.online.plan import round_settings
from prlhf.progress import Progress

MEASURED = 2  # candidates of a group, the first ones, whose log-probs and shuffled rewards are computed


class Author:
    """Writes with `policy`; the run `config.reward`, loaded once, gives rewards."""

    def __init__(self, policy: Policy, implicit: Rewards) -> None:
        """`implicit`: the rewards of the policy itself, from which its log-probs are known and the reference's."""
        config: TrainConfig = policy.config
        assert config.reward
        self.policy, self.implicit, self.reader = policy, implicit, ResponseReader(policy)
        self.best_of = load_best_of(config.reward, round_settings(config, 1), policy.base.fingerprint)

    def write(
        self, requests: Sequence[WriteRequest], number: int, step: int, progress: Progress, stopped: Callable[[], bool]
    ) -> list[Candidate] | None:
        """The candidates of round `number`, which the policy writes after `step` steps; None if it was `stopped`."""
        config = self.policy.config
        self.policy.model.eval()
        found: list[Candidate] = []
        progress.start(f"writing round {number} of {config.rounds}", len(requests) * config.candidates)
        for groups in self.best_of.scored(self.policy, requests, round_settings(config, number)):
            if stopped():
                return None
            for group in groups:
                found += self._measured(group, step)
            progress.advance(sum(map(len, groups)))
        progress.finish()
        return self.with_log_probs(in_order(found), requests, progress)

    def _measured(self, group: Sequence[Written], step: int) -> list[Candidate]:
        """One group with the rewards that another user would give to its first candidates."""
        rows = [_candidate(one, step) for one in group]
        other = another(self.policy.user_ids, rows[0].user_id, f"{step} {rows[0].prompt_id} {rows[0].user_id}")
        if other is None:
            return rows
        rewards = self.best_of.rewards_of(group[:MEASURED], other)
        first = [replace(row, shuffled_reward=reward) for row, reward in zip(rows, rewards, strict=False)]
        return first + rows[MEASURED:]

    def with_log_probs(
        self, rows: Sequence[Candidate], _requests: Sequence[WriteRequest], progress: Progress
    ) -> list[Candidate]:
        """`rows`, with the log-probs of the first candidates of each group under the policy and under the reference."""
        pairs = [Ranked(*group[:MEASURED]) for group in groups_of(rows).values()]
        data = [encoded(self.reader, pair) for pair in pairs]
        scale = self.implicit.scale

        def read(chunk: list[int]) -> list[list[Candidate]]:
            some = [data[i] for i in chunk]
            reference = self.implicit.offset(some).view(2, len(some)) / scale
            own = self.implicit(some, [e.user_index for e in some]).cpu() / scale + reference
            return [
                [
                    replace(row, log_prob=float(own[side, at]), reference_log_prob=float(reference[side, at]))
                    for side, row in enumerate(pairs[i])
                ]
                for at, i in enumerate(chunk)
            ]

        progress.start("log-probs of candidates", len(data))
        lengths = [len(e.prompt) + len(e.chosen) for e in data]
        done = in_batches(self.policy.model, lengths, self.policy.config.batch_size, read, progress)
        progress.finish()
        measured = {(*row.group, row.candidate): row for pair in done for row in pair}
        return [measured.get((*row.group, row.candidate), row) for row in rows]


class TokenAuthor(Author):
    """Measures all candidates, token by token as they were sampled: what policy optimization compares with later."""

    @override
    def with_log_probs(
        self, rows: Sequence[Candidate], requests: Sequence[WriteRequest], progress: Progress
    ) -> list[Candidate]:
        engine, asked = self.implicit.engine, {(one.prompt_id, one.user_id): one for one in requests}
        groups = list(groups_of(rows).values())

        def read(chunk: list[int]) -> list[list[Candidate]]:
            some = [row for number in chunk for row in groups[number]]
            new = engine.by_token([reading_of(row, asked[row.group]) for row in some])
            reference = engine.by_token([as_base(row, asked[row.group]) for row in some], base=True)
            measured = iter(map(_with_tokens, some, new, reference))
            return [list(islice(measured, len(groups[number]))) for number in chunk]

        progress.start("log-probs of candidates", len(groups))
        lengths = [len(asked[group[0].group].ids) for group in groups]
        done = in_batches(engine.model, lengths, self.policy.config.batch_size, read, progress)
        progress.finish()
        return [row for group in done for row in group]


def reading_of(row: Candidate, request: WriteRequest) -> Reading:
    """A candidate as it was sampled, after what `request` showed the policy."""
    return Reading(row.user_index, tuple(request.ids), tuple(row.sampled))


def as_base(row: Candidate, request: WriteRequest) -> Reading:
    """A candidate as the reference reads it: without user, and without text about the user."""
    return Reading(0, tuple(request.ids[request.about :]), tuple(row.sampled))


def _with_tokens(row: Candidate, new: Tensor, reference: Tensor) -> Candidate:
    own, base = (found[: len(row.sampled)].tolist() for found in (new, reference))
    return replace(
        row, token_log_probs=own, token_references=base, log_prob=math.fsum(own), reference_log_prob=math.fsum(base)
    )


def _candidate(one: Written, step: int) -> Candidate:
    request = one.request
    return Candidate(
        policy_step=step,
        prompt_id=request.prompt_id,
        prompt=request.prompt,
        user_id=request.user_id,
        user_index=request.user_index,
        candidate=request.candidate,
        response=one.text,
        tokens=one.tokens,
        finished=one.finished,
        sampled=list(one.sampled),
        reward=math.nan if one.reward is None else one.reward,
    )


def another(users: Sequence[str], user: str, seed: str) -> str | None:
    """A user other than `user`, drawn by `seed`; None for the generic user, or if there is no other."""
    others = [other for other in users if other != user]
    return random.Random(seed).choice(others) if others and user in users else None
