"""Online DPO (`objective = online-dpo`): best against worst of a round's candidates becomes a comparison.

A batch mixes comparisons of this round and of earlier ones with those of the data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from typing_extensions import override

from prlhf.config import TrainConfig
from prlhf.model.encoding import Encoded
from prlhf.online.candidates import Candidate, encoded, ranked
from prlhf.train import rounds
from prlhf.train.rounds import Rounds, in_passes

Named = rounds.Named[Encoded]


class OnlineLoop(Rounds):
    """Rounds that DPO trains on."""

    @override
    def drawn(self, rows: Sequence[Candidate], number: int) -> list[list[list[Named]]]:
        given = [(row.id, e) for row, e in zip(self.train_set.rows, self.train_set.encoded, strict=True)]
        config = self.config
        earlier = range(max(1, number - config.replay), number)
        rows = [*(row for each in earlier for row in self.kept(each)), *rows]
        own = [(pair.name, encoded(self.author.reader, pair)) for pair in ranked(rows)]
        return draw_batches(own, given, config, number) if own else []


def draw_batches(
    own: Sequence[Named], given: Sequence[Named], config: TrainConfig, number: int
) -> list[list[list[Named]]]:
    """The batches of each step of round `number`: comparisons of candidates, and a share of those `given` in the data.

    Both are drawn in passes, each in a new order. A candidate's comparison is read as whom it was written for; one of
    the data as its user with probability alpha, else as the generic user.
    """
    rng = random.Random(f"{config.seed} {number} batches")
    offline = round(config.offline_fraction * config.batch_size) if given else 0
    fresh, known = in_passes(own, rng), in_passes(given, rng)

    def batch() -> list[Named]:
        found = [next(fresh) for _ in range(config.batch_size - offline)]
        for _ in range(offline):
            name, row = next(known)
            found.append((name, row if rng.random() < config.alpha else replace(row, user_index=0)))
        return found

    return [[batch() for _ in range(config.accumulation)] for _ in range(config.round_steps)]
