"""The numbers of a round: what the candidates are like, and whether another judge than the reward agrees with it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prlhf.dataset import GENERIC, User
from prlhf.forum import posts
from prlhf.forum.tastes import Taste, prefers, understand
from prlhf.model.rewards import mean
from prlhf.online.candidates import Candidate, Ranked, groups_of, ranked

Tastes = Mapping[str, Taste]


def summarise_round(rows: Sequence[Candidate], tastes: Tastes) -> dict[str, Any]:
    """The numbers of a round, means over candidates unless they are said to be of groups or comparisons.

    `reward_by_user` and `shuffled_reward`: as the user, and as another one, who does not know whom a response is for.
    `without_spread_by_user`: the share of groups whose candidates all have the same reward. `kl`: log-ratio of policy
    to reference in nats per response, and `entropy`: negative log-prob in nats per token; both are estimates from
    candidates, and exact expectations at temperature 1 only. On the synthetic forum `tastes` are known:
    `well_formed`, `faithful`, and the share of comparisons that the user's true taste agrees with, a tie as half.
    """
    pairs, groups = ranked(rows), groups_of(rows).values()
    own = [row for row in rows if not math.isnan(row.shuffled_reward)]
    known = [row for row in rows if not math.isnan(row.log_prob)]
    read = sum(row.tokens + row.finished for row in known)
    numbers = {
        "written": len(rows),
        "comparisons": len(pairs),
        "reward": mean([row.reward for row in rows]),
        "reward_by_user": by_user((row.user_id, row.reward) for row in rows),
        "shuffled_reward": mean([row.shuffled_reward for row in own]),
        "margin": mean([pair.chosen.reward - pair.rejected.reward for pair in pairs]),
        "without_spread_by_user": by_user((group[0].user_id, _same(group)) for group in groups),
        "kl": mean([row.log_prob - row.reference_log_prob for row in known]),
        "entropy": -sum(row.log_prob for row in known) / read if read else None,
        "tokens": mean([row.tokens for row in rows]),
        "finished": mean([row.finished for row in rows]),
    }
    return numbers | (_by_taste(rows, pairs, tastes) if tastes else {})


def by_user(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each user's values."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for user, value in values:
        found[user].append(value)
    return {user: sum(values) / len(values) for user, values in found.items()}


def _same(group: Sequence[Candidate]) -> bool:
    return len({row.reward for row in group}) == 1


# ---- another judge: the grammar and the tastes of the synthetic forum ----


def known_tastes(users: Iterable[User]) -> Tastes:
    """The users' true tastes, and the generic user's, who has none; empty where the data do not know them."""
    tastes = {user.id: understand(user.preference) for user in users}
    return tastes | {GENERIC: Taste()} if any(taste != Taste() for taste in tastes.values()) else {}


def _by_taste(rows: Sequence[Candidate], pairs: Sequence[Ranked], tastes: Tastes) -> dict[str, Any]:
    def agrees(chosen: Candidate, rejected: Candidate) -> float:
        return (1 + prefers(tastes[chosen.user_id], _graded(chosen), _graded(rejected))) / 2

    return {
        "well_formed": mean([_graded(row).well_formed for row in rows]),
        "faithful": mean([_graded(row).faithful for row in rows]),
        "oracle_agrees_by_user": by_user((pair.chosen.user_id, agrees(*pair)) for pair in pairs),
    }


def _graded(row: Candidate) -> posts.Verdict:
    return posts.grade_summary(str(row.prompt), row.response, row.finished)
