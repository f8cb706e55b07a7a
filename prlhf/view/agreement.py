"""What users chose of the same pairs: how often they agree, and whether they stay with their choice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from prlhf.dataset import Comparison, prompt_id

SHOWN = 20  # users who are compared with one another: those with the most comparisons of shared pairs

Votes = dict[str, str]  # of one pair: user -> what they chose


def agreement(rows: Iterable[Comparison]) -> dict[str, Any]:
    """How users agree on pairs of the same prompt and the same two responses, whichever of them was chosen.

    Returns:
        `pairs`: those that two users or more chose from; `same`: the share of agreement over all two users of a pair
        (None without such pairs); `by_user`: for each user the number of others' choices and the share that agrees;
        `between`: the same for each two of the users with the most; `changed`: the number of (pair, user) in which
        a user chose both responses at different times. Those are counted nowhere else.
    """
    votes, changed = votes_of(rows)
    shared = [one for one in votes if len(one) > 1]
    others: Counter[str] = Counter()
    agreed: Counter[str] = Counter()
    for one in shared:
        sizes = Counter(one.values())
        for user, choice in one.items():
            others[user] += len(one) - 1
            agreed[user] += sizes[choice] - 1
    total = sum(others.values())
    return {
        "pairs": len(shared),
        "same": sum(agreed.values()) / total if total else None,
        "by_user": {user: {"others": n, "same": agreed[user] / n} for user, n in others.most_common()},
        "between": between(shared, [user for user, _ in others.most_common(SHOWN)]),
        "changed": changed,
    }


def votes_of(rows: Iterable[Comparison]) -> tuple[list[Votes], int]:
    """The choices of each pair of responses, and the number of users who chose both responses of a pair."""
    found: defaultdict[tuple[str, str, str], defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        chosen, rejected = prompt_id(row.chosen), prompt_id(row.rejected)
        first, second = sorted([chosen, rejected])
        found[row.prompt_id, first, second][row.user_id].add(chosen)
    votes = [{user: next(iter(chosen)) for user, chosen in one.items() if len(chosen) == 1} for one in found.values()]
    return votes, sum(len(chosen) > 1 for one in found.values() for chosen in one.values())


def between(shared: Iterable[Mapping[str, str]], users: list[str]) -> list[dict[str, Any]]:
    """For each two of `users` who chose from the same pairs: how many, and the share in which they agree."""
    both: Counter[tuple[str, str]] = Counter()
    same: Counter[tuple[str, str]] = Counter()
    for one in shared:
        for a, b in combinations([user for user in users if user in one], 2):
            both[a, b] += 1
            same[a, b] += one[a] == one[b]
    return [{"users": [a, b], "pairs": n, "same": same[a, b] / n} for (a, b), n in both.most_common()]
