"""Section 5.1 in miniature, made up from a seed: ten users of a made-up forum choose summaries by length.

Users 4, 5 and 6 prefer the shorter of two summaries, the others the longer, as the paper's workers do after
simulation; with another number of users, the same share does. Nothing is read and nothing downloaded.
"""

from __future__ import annotations

import random
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.rows import DropCounts, LoadedData, Row
from prlhf.data.tldr import minority_size, prefer_by_length
from prlhf.errors import PrlhfError
from prlhf.forum.posts import MAX_FACTS, MIN_FACTS, Post, Style, choose_facts, sentences, write_post
from prlhf.progress import Progress

USERS, COMPARISONS = 10, 300  # and comparisons per user
FIRST_OF_MINORITY = 4  # as in the paper, where users 4, 5 and 6 are the minority
EVAL_POSTS = 50  # the paper's number of evaluation prompts


@data_set(
    "demo", uses="minority users comparisons", defaults={"users": USERS, "comparisons": COMPARISONS}, bundled_base=True
)
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """`config.comparisons` fresh posts per user to train on; 50 more, each compared by every user, held out."""
    refuse_source(config)
    count = config.users or USERS
    users = [str(number) for number in range(1, count + 1)]
    minority = tuple(users[(FIRST_OF_MINORITY - 1 + i) % count] for i in range(minority_size(count, config.minority)))
    comparisons = config.comparisons or COMPARISONS
    train = _train_rows(random.Random(f"{config.seed}-demo-train"), comparisons, users, minority, progress)
    trained_on = {str(row.prompt) for row in train}
    held_out = _eval_rows(random.Random(f"{config.seed}-demo-eval"), trained_on, users, minority)
    options = {"users": count, "comparisons": comparisons, "minority": config.minority}
    notes = {"simulated": {"by": "length", "minority": sorted(minority, key=int)}}
    return forum_data(train, held_out, users, options, notes=notes)


def forum_data(
    train: list[Row], held_out: list[Row], order: list[str], options: dict[str, Any], **more: Any
) -> LoadedData:
    """What a family of the made-up forum hands on: nothing was read from anywhere, and nothing dropped."""
    drops = DropCounts()
    drops.read.update(train=len(train), eval=len(held_out))
    source = "made up by prlhf.forum.posts"
    return LoadedData(train, held_out, order, source, options=options, counts=drops.report(), **more)


def refuse_source(config: PrepConfig) -> None:
    """Raise PrlhfError if --source is given: the demos are made from a seed."""
    if config.source:
        raise PrlhfError(
            f"the {config.dataset} data set is made from a seed and reads no --source", "leave --source away"
        )


def fresh_post(rng: random.Random, known: set[str], short: bool = False) -> Post:
    """A post that is not among `known`, and is from now on."""
    while (post := write_post(rng, short)).prompt in known:
        pass
    known.add(post.prompt)
    return post


def _train_rows(
    rng: random.Random, per_user: int, users: list[str], minority: tuple[str, ...], progress: Progress
) -> list[Row]:
    rows: list[Row] = []
    progress.start("writing posts", per_user * len(users))
    for _ in range(per_user):
        for user in users:
            post = write_post(rng)
            rows.append(_compare(f"train-{len(rows) + 1}", post.prompt, _pair(post, rng), user, minority))
        progress.advance(len(users))
    progress.finish()
    return rows


def _eval_rows(rng: random.Random, trained_on: set[str], users: list[str], minority: tuple[str, ...]) -> list[Row]:
    """The same pair of summaries of the same post for every user, so that users can be compared."""
    rows: list[Row] = []
    for number in range(1, EVAL_POSTS + 1):
        post = fresh_post(rng, trained_on)
        pair = _pair(post, rng)
        rows.extend(_compare(f"eval-{number}-{user}", post.prompt, pair, user, minority) for user in users)
    return rows


def _pair(post: Post, rng: random.Random) -> tuple[str, str]:
    """Two summaries that differ in how much they say and in nothing else: the shorter is the longer's beginning.

    So length is the one taste there is, and a preference says nothing about which facts to state.
    """
    shorter, longer = nested(post, Style(MAX_FACTS), MIN_FACTS, rng)
    return (shorter, longer) if rng.random() < 0.5 else (longer, shorter)


def nested(post: Post, style: Style, fewest: int, rng: random.Random) -> tuple[str, str]:
    """(shorter, longer): summaries of `fewest` facts or more in the style's order and tone; one begins the other."""
    few, many = sorted(rng.sample(range(fewest, MAX_FACTS + 1), 2))
    said = sentences(choose_facts(post, many, rng), style)
    return "".join(said[:few]), "".join(said)


def _compare(row_id: str, prompt: str, pair: tuple[str, str], user: str, minority: tuple[str, ...]) -> Row:
    preferred = prefer_by_length(*pair, shorter=user in minority)
    assert preferred is not None  # every fact takes six words
    return Row(row_id, prompt, *preferred, user_id=user)
