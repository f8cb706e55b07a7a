"""Section 5.1 in miniature, made up from a seed: ten users of a made-up forum choose summaries by length.

Users 4, 5 and 6 prefer the shorter of two summaries, the others the longer, as the paper's workers do after
simulation. Nothing is read and nothing downloaded.
"""

from __future__ import annotations

import random

from prlhf.config import PrepConfig
from prlhf.data.intake import Drops
from prlhf.data.rows import Loaded, Row
from prlhf.data.simulate import minority_size, prefer_by_length
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.world import MAX_FACTS, MIN_FACTS, Post, write_post, write_summary

USERS = tuple(str(number) for number in range(1, 11))
MINORITY_ORDER = ("4", "5", "6", "7", "8", "9", "10", "1", "2", "3")  # the paper's minority comes first
EVAL_POSTS = 50  # the paper's number of evaluation prompts


def load(config: PrepConfig, progress: Progress) -> Loaded:
    """`config.comparisons` fresh posts per user to train on; 50 more, each compared by every user, held out."""
    if config.source:
        raise PrlhfError("the demo data set is made from a seed and reads no --source", "leave --source away")
    minority = MINORITY_ORDER[: minority_size(len(USERS), config.minority)]
    train = _train_rows(random.Random(f"{config.seed}-demo-train"), config.comparisons, minority, progress)
    held_out = _eval_rows(random.Random(f"{config.seed}-demo-eval"), {str(row.prompt) for row in train}, minority)
    drops = Drops()
    drops.read.update(train=len(train), eval=len(held_out))
    return Loaded(
        train=train,
        eval=held_out,
        order=list(USERS),
        source="made up by prlhf.world",
        options={"comparisons": config.comparisons, "minority": config.minority},
        counts=drops.report(),
        notes={"simulated": {"by": "length", "minority": sorted(minority, key=int)}},
    )


def _train_rows(rng: random.Random, per_user: int, minority: tuple[str, ...], progress: Progress) -> list[Row]:
    rows: list[Row] = []
    progress.start("writing posts", per_user * len(USERS))
    for _ in range(per_user):
        for user in USERS:
            post = write_post(rng)
            rows.append(_compare(f"train-{len(rows) + 1}", post.prompt, _pair(post, rng), user, minority))
        progress.advance(len(USERS))
    progress.finish()
    return rows


def _eval_rows(rng: random.Random, trained_on: set[str], minority: tuple[str, ...]) -> list[Row]:
    """The same pair of summaries of the same post for every user, so that users can be compared."""
    rows: list[Row] = []
    number = 0
    while number < EVAL_POSTS:
        post = write_post(rng)
        if post.prompt in trained_on:
            continue
        trained_on.add(post.prompt)
        number += 1
        pair = _pair(post, rng)
        rows.extend(_compare(f"eval-{number}-{user}", post.prompt, pair, user, minority) for user in USERS)
    return rows


def _pair(post: Post, rng: random.Random) -> tuple[str, str]:
    """Two summaries that differ in how much they say and in nothing else: the shorter is the longer's beginning.

    So length is the one taste there is, and a preference says nothing about which facts to state.
    """
    few, many = sorted(rng.sample(range(MIN_FACTS, MAX_FACTS + 1), 2))
    longer = write_summary(post, rng, many)
    shorter = "".join(f"{sentence}." for sentence in longer.split(".")[:few])
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def _compare(row_id: str, prompt: str, pair: tuple[str, str], user: str, minority: tuple[str, ...]) -> Row:
    preferred = prefer_by_length(*pair, shorter=user in minority)
    assert preferred is not None  # every fact takes six words
    return Row(row_id, prompt, *preferred, user_id=user)
