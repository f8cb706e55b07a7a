"""From rows to the comparisons of a prepared data set: the split by prompt, and the users' indices."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from prlhf.data.rows import Row
from prlhf.dataset import Comparison, User, prompt_id
from prlhf.errors import PrlhfError

POOL = 100
T = TypeVar("T")


def first_appearance(rows: Iterable[Row]) -> list[str]:
    """Return the users of the rows, each once, in order of first appearance."""
    return list(dict.fromkeys(row.user_id for row in rows))


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return (train, eval) with about `fraction` of the *prompts* in eval; no prompt is on both sides.

    If `fraction` is above 0 and there are two prompts, at least one goes to eval; one always stays in train.
    """
    ids = [prompt_id(row.prompt) for row in rows]
    prompts = list(dict.fromkeys(ids))
    wanted = max(1, round(fraction * len(prompts))) if fraction > 0 else 0
    count = min(wanted, len(prompts) - 1)
    held_out = set(random.Random(f"{seed}-split").sample(prompts, max(count, 0)))
    train = [row for row, prompt in zip(rows, ids, strict=True) if prompt not in held_out]
    return train, [row for row, prompt in zip(rows, ids, strict=True) if prompt in held_out]


def draw_unseen(users: Sequence[str], fraction: float, seed: str) -> set[str]:
    """Draw `fraction` of the users, rounded, to be unseen in training; at least one user is not drawn."""
    count = min(round(fraction * len(users)), max(len(users) - 1, 0))
    return set(random.Random(seed).sample(users, count))


def draw_pool(pairs: Sequence[T], shots: int, seed: str, source: str) -> list[T]:
    """Draw the pairs that unseen users choose from and nobody is trained on: 100, at most half (P-TTT 2609.35109, H).

    Raises:
        PrlhfError: there are fewer than `shots`, the number that each user needs.
    """
    pool = random.Random(seed).sample(pairs, min(POOL, len(pairs) // 2))
    if shots > len(pool):
        why = f"shots = {shots}, and the pool of pairs to choose from has {len(pool)} ({source})"
        raise PrlhfError(why, f"set it to at most {len(pool)}" if pool else "give more prompts")
    return pool


def index_users(
    train: Sequence[Row], held_out: Sequence[Row], order: Sequence[str], preferences: Mapping[str, str] | None = None
) -> tuple[list[Comparison], list[Comparison], list[User]]:
    """Give the users in `order`, those with training rows, the indices 1 to m, and every other user the index 0.

    Users that are unseen in training come last in the table and share the index of the generic user.

    Returns:
        The comparisons to train on, the held-out ones, and the users.

    Raises:
        ValueError: `order` does not name every training user once.
    """
    train_counts, eval_counts = (Counter(row.user_id for row in rows) for rows in (train, held_out))
    if sorted(order) != sorted(train_counts):
        raise ValueError("`order` must name every training user once")
    index = {user: number for number, user in enumerate(order, start=1)}
    texts = _first_texts([*train, *held_out])
    users = [
        User(
            id=user,
            user_index=index.get(user, 0),
            text=texts.get(user, ""),
            preference=(preferences or {}).get(user, ""),
            train_count=train_counts[user],
            eval_count=eval_counts[user],
            seen=user in index,
        )
        for user in dict.fromkeys([*order, *first_appearance(held_out)])
    ]
    return indexed(train, index), indexed(held_out, index), users


def text_conflicts(rows: Iterable[Row]) -> int:
    """Count users with more than one text. Rows keep their text, and the table of users has the first one."""
    texts: dict[str, set[str]] = {}
    for row in rows:
        if row.user_text:
            texts.setdefault(row.user_id, set()).add(row.user_text)
    return sum(len(found) > 1 for found in texts.values())


def warn_of_shared_prompts(train: Iterable[Row], held_out: Iterable[Row]) -> list[str]:
    """Return a warning if held-out prompts are also in training."""
    shared = len({prompt_id(row.prompt) for row in held_out} & {prompt_id(row.prompt) for row in train})
    return [f"{shared} held-out prompts are also in training: their accuracy is optimistic"] if shared else []


def _first_texts(rows: Iterable[Row]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in rows:
        if row.user_text:
            texts.setdefault(row.user_id, row.user_text)
    return texts


def indexed(rows: Sequence[Row], index: Mapping[str, int]) -> list[Comparison]:
    """Return the rows as comparisons. `index`: the indices of the seen users."""
    return [
        Comparison(
            id=row.id,
            prompt=row.prompt,
            chosen=row.chosen,
            rejected=row.rejected,
            user_id=row.user_id,
            user_index=index.get(row.user_id, 0),
            user_text=row.user_text,
            prompt_id=prompt_id(row.prompt),
            seen=row.user_id in index,
        )
        for row in rows
    ]
