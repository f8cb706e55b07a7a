"""From rows to the records of a prepared data set: dividing by prompt, and giving every user an index."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prlhf.data.rows import Row
from prlhf.dataset import Comparison, User, prompt_id


def first_appearance(rows: Iterable[Row]) -> list[str]:
    """The rows' users, each once, in order of first appearance."""
    return list(dict.fromkeys(row.user_id for row in rows))


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, eval) with about `fraction` of the *prompts* in eval: a prompt is never on both sides.

    At least one prompt goes to eval where a share is asked for and there are two; one always stays in train.
    """
    ids = [prompt_id(row.prompt) for row in rows]
    prompts = list(dict.fromkeys(ids))
    wanted = max(1, round(fraction * len(prompts))) if fraction > 0 else 0
    count = min(wanted, len(prompts) - 1)
    held_out = set(random.Random(f"{seed}-split").sample(prompts, max(count, 0)))
    train = [row for row, prompt in zip(rows, ids, strict=True) if prompt not in held_out]
    return train, [row for row, prompt in zip(rows, ids, strict=True) if prompt in held_out]


def index_users(
    train: Sequence[Row], held_out: Sequence[Row], order: Sequence[str], preferences: Mapping[str, str] | None = None
) -> tuple[list[Comparison], list[Comparison], list[User]]:
    """Give the users in `order` (those with training rows) the indices 1..m, and every other user index 0.

    Users unseen in training stand last in the table and share the generic user's index.
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
    return _indexed(train, index), _indexed(held_out, index), users


def text_conflicts(rows: Iterable[Row]) -> int:
    """How many users come with more than one text about them; rows keep theirs, the users' table the first."""
    texts: dict[str, set[str]] = {}
    for row in rows:
        if row.user_text:
            texts.setdefault(row.user_id, set()).add(row.user_text)
    return sum(len(found) > 1 for found in texts.values())


def count_shared_prompts(train: Iterable[Row], held_out: Iterable[Row]) -> int:
    """How many held-out prompts also stand in training."""
    return len({prompt_id(row.prompt) for row in held_out} & {prompt_id(row.prompt) for row in train})


def _first_texts(rows: Iterable[Row]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for row in rows:
        if row.user_text:
            texts.setdefault(row.user_id, row.user_text)
    return texts


def _indexed(rows: Sequence[Row], index: dict[str, int]) -> list[Comparison]:
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
