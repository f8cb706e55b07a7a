"""Section 5.3 in miniature: a crowd of users with a hidden mixture of a few tastes, and a line of text about each.

The text tells part of the taste only (`be kind to people.`), each part fits two of the four tastes, and these two
differ in everything else: what is left can be learned from the user's own choices alone. A share of the users is
kept out of training. A comparison differs in one dimension. Choices can be noisy. Posts are short: there are many.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.demo import forum_data, fresh_post, refuse_source
from prlhf.data.demo_profiles import contrast
from prlhf.data.rows import LoadedData, Row
from prlhf.data.splits import first_appearance
from prlhf.forum.posts import Post
from prlhf.forum.tastes import DIMENSIONS, Taste, describe
from prlhf.progress import Progress

# Each pole of each dimension belongs to two tastes that are opposite in the two other dimensions.
TASTES = {
    Taste(length=1, order=1, tone=1): 0.4,
    Taste(length=-1, order=-1, tone=1): 0.3,
    Taste(length=-1, order=1, tone=-1): 0.2,
    Taste(length=1, order=-1, tone=-1): 0.1,
}
USERS, COMPARISONS = 1500, 8  # the paper's number of users; and comparisons per user
EVAL_COMPARISONS = 500  # held out at least, spread over the seen users; unseen ones have twice as many each
FEWEST = 2  # facts: one fact has no order, and would tell of two dimensions at once
EVAL_USERS = 1350, 150  # seen and unseen users with held-out comparisons, at most


@data_set(
    "demo-crowd",
    uses="users comparisons noise reveal unseen_fraction",
    defaults={"users": USERS, "comparisons": COMPARISONS},
    bundled_base=True,
)
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """`config.comparisons` per seen user to train on; one held out, and twice as many for unseen users.

    Held out are more where there are few users, and none for some where there are very many.
    """
    refuse_source(config)
    count, comparisons = config.users or USERS, config.comparisons or COMPARISONS
    tastes = draw_tastes(count, random.Random(f"{config.seed}-demo-crowd-users"))
    texts = tell(tastes, config.reveal, random.Random(f"{config.seed}-demo-crowd-texts"))
    unseen = _draw_unseen(list(tastes), config.unseen_fraction, config.seed)
    rng, known = random.Random(f"{config.seed}-demo-crowd-rows"), set[str]()

    def rows(part: str, users: list[str], each: int, noise: float) -> list[Row]:
        progress.start(f"writing {part}", each * len(users))
        written = []
        for number in range(each):
            for user in users:
                post = fresh_post(rng, known, short=True)
                written.append(
                    _comparison(f"{part}-{number + 1}-{user}", post, user, tastes[user], texts[user], noise, rng)
                )
            progress.advance(len(users))
        progress.finish()
        return written

    seen = [user for user in tastes if user not in unseen]
    train = rows("train", seen, comparisons, config.noise)
    each = math.ceil(EVAL_COMPARISONS / count)
    held_out = rows("eval", seen[: EVAL_USERS[0]], each, noise=0.0)
    held_out += rows("eval-unseen", sorted(unseen, key=int)[: EVAL_USERS[1]], 2 * each, noise=0.0)
    options = {"users": count, "comparisons": comparisons}
    options |= config.model_dump(include={"reveal", "noise", "unseen_fraction"})
    preferences = {user: describe(taste) for user, taste in tastes.items()}
    return forum_data(train, held_out, first_appearance(train), options, preferences=preferences)


def draw_tastes(users: int, rng: random.Random) -> dict[str, Taste]:
    """A taste for every user `1`..`users`, drawn from the mixture."""
    drawn = rng.choices(list(TASTES), weights=list(TASTES.values()), k=users)
    return {str(number): taste for number, taste in enumerate(drawn, start=1)}


def tell(tastes: Mapping[str, Taste], dimensions: int, rng: random.Random) -> dict[str, str]:
    """A line about every user that tells that many `dimensions` of the taste; none is no text."""
    told = {user: rng.sample(DIMENSIONS, dimensions) for user in tastes}
    parts = {user: [describe(taste.only(d)) for d in DIMENSIONS if d in told[user]] for user, taste in tastes.items()}
    return {user: " ".join(words) + "\n" if words else "" for user, words in parts.items()}


def _comparison(row_id: str, post: Post, user: str, taste: Taste, text: str, noise: float, rng: random.Random) -> Row:
    """A choice by one dimension of the taste, drawn at random; with probability `noise` it is turned around."""
    dimension = rng.choice(DIMENSIONS)
    chosen, rejected = contrast(post, taste.only(dimension), FEWEST, rng)
    if rng.random() < noise:
        chosen, rejected = rejected, chosen
    return Row(row_id, post.prompt, chosen, rejected, user, text)


def _draw_unseen(users: list[str], share: float, seed: int) -> set[str]:
    return set(random.Random(f"{seed}-demo-crowd-unseen").sample(users, round(share * len(users))))
