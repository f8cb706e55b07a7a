"""Rounds: the policy writes candidates, a reward scores them, and an objective trains on the result.

What becomes of the candidates is said in online.py (`objective = online-dpo`) and policy_gradient.py (`grpo`, `rloo`).
The candidates of a round stand in a file before its first step, so a run that was stopped continues with them; on
another machine, with the copies in the checkpoint. Of several workers each writes its share; the first has the file.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

from prlhf.dataset import Prepared
from prlhf.errors import Interrupted, OnAll
from prlhf.generate.requests import WriteRequest
from prlhf.model import workers
from prlhf.model.rewards import Rewards
from prlhf.online.author import Author
from prlhf.online.candidates import Candidate, copy_candidates, in_order, path_of, read_candidates, write_candidates
from prlhf.online.plan import plan_rounds
from prlhf.online.summary import known_tastes, summarise_round
from prlhf.train import metrics
from prlhf.train.loop import Loop
from prlhf.train.optimizer import rows_of

T = TypeVar("T")
Named = tuple[str, T]  # what an error calls a row, and the row


class Rounds(Loop):
    """The training loop, whose batches come from rounds. All rounds share one optimizer and one schedule."""

    author_of = Author  # who measures the candidates as this objective needs it

    def __init__(self, data: Prepared, *about: Any) -> None:
        """`about`: as for Loop. Raises PrlhfError if a round cannot be written."""
        super().__init__(*about)
        self.tastes = known_tastes(data.users)
        self.requests = plan_rounds(self.policy, data.train, self.progress)
        rewards: Rewards = self.objective.rewards  # type: ignore[attr-defined]
        self.author = workers.all_or_none(lambda: self.author_of(self.policy, rewards))

    @abstractmethod
    def drawn(self, rows: Sequence[Candidate], number: int) -> list[list[list[Named[Any]]]]:
        """The batches of each step of round `number`, whose candidates are `rows`; empty if they train nothing."""

    @override
    def upcoming(self) -> Iterator[list[list[Any]]]:
        config, first = self.config, self.step
        for number in range(1 + first // config.round_steps, config.rounds + 1):
            begun = (number - 1) * config.round_steps
            steps = self.drawn(self._candidates(number), number)
            if not steps:
                raise OnAll(
                    f"in round {number} all candidates of a prompt have the same reward: there is nothing to compare",
                    "raise temperature or candidates, or look at them in the run's candidates folder",
                )
            for batches in steps[max(0, first - begun) :]:
                self._ids |= {id(row): name for batch in batches for name, row in batch}
                yield [[row for _, row in batch] for batch in batches]

    @override
    def passed(self) -> dict[str, float]:
        return {"round": self.step / self.config.round_steps}

    def _candidates(self, number: int) -> list[Candidate]:
        """The candidates of round `number`, from its file, or written now; they are logged if the round begins now."""
        begins = self.step == (number - 1) * self.config.round_steps
        if begins and not workers.from_first(path_of(self.config.folder, number).exists()):
            self._write(number)
        rows = self.kept(number)
        if begins:
            numbers = summarise_round(rows, self.tastes)
            metrics.append(self.metrics_path, {"step": self.step, "candidates": {"round": number, **numbers}})
            means = {name: value for name, value in numbers.items() if isinstance(value, float)}
            self.trackers.log(self.step, {f"candidates_{name}": value for name, value in means.items()})
            self.progress.note(shown_round(number, self.config.rounds, numbers))
        return rows

    def kept(self, number: int) -> list[Candidate]:
        """The candidates of round `number` from its file, which is in the first worker's run; the same on all."""
        path = path_of(self.config.folder, number)
        return workers.from_first(read_candidates(path) if workers.rank() == 0 else [])

    @override
    def put_into(self, checkpoint: Path) -> None:
        super().put_into(checkpoint)
        copy_candidates(self.config.folder, checkpoint)

    @override
    def resume(self, checkpoint: Path) -> None:
        super().resume(checkpoint)
        if workers.rank() == 0:
            copy_candidates(checkpoint, self.config.folder)

    def _write(self, number: int) -> None:
        """Write a round, after a checkpoint: what a stop costs is at most this round's candidates."""
        if self.step > self.saved:
            self.save()
        requests = self.requests[number - 1]
        with self.optimizer.settled(rows_of(self.model, {request.user_index for request in requests})):
            shares = workers.gather(self._write_own(requests, number))
        if None in shares:
            then = f"continue with: prlhf train --resume --out {self.config.folder}"
            raise Interrupted(
                f"stopped while round {number} was written; {then if self.step else 'nothing was trained'}"
            )
        if workers.rank() == 0:
            rows = in_order(row for share in shares for row in share or [])
            write_candidates(path_of(self.config.folder, number), rows)
        self.progress.start("training", self.steps)
        self.progress.advance(self.step)

    def _write_own(self, requests: Sequence[WriteRequest], number: int) -> list[Candidate] | None:
        """This worker's share of a round; None if it was asked to stop. Raises OnAll if any worker fails."""
        own, stopped = workers.own(requests), lambda: self.stop.asked
        return workers.all_or_none(lambda: self.author.write(own, number, self.step, self.progress, stopped))


def in_passes(rows: Sequence[T], rng: random.Random) -> Iterator[T]:
    """`rows` again and again without end, in a new order each time."""
    while True:
        yield from rng.sample(rows, len(rows))


def shown_round(number: int, rounds: int, numbers: dict[str, Any]) -> str:
    """A round as a line: `round 2 of 8: reward 1.52, KL 3.1 nats, 24 tokens, 96 % well-formed`."""
    form = f", {numbers['well_formed']:.0%} well-formed" if "well_formed" in numbers else ""
    return (
        f"round {number} of {rounds}: reward {numbers['reward']:.2f}, KL {numbers['kl']:.1f} nats, "
        f"{numbers['tokens']:.0f} tokens{form.replace('%', ' %')}, {numbers['comparisons']} comparisons"
    )
