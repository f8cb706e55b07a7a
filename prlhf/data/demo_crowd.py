"""Section 5.3 in miniature: many users whose tastes are a hidden mixture of four, with a line of text about each.

The text gives a part of the taste only (`be kind to people.`). Each part fits two of the four tastes, which differ in
all other dimensions; these can be learned from the user's own choices only. A share of the users is unseen in training.
The two summaries of a comparison differ in one dimension. Choices can be noisy. Posts are short, since there are many.
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
from prlhf.data.splits import draw_unseen, first_appearance
from prlhf.forum.posts import Post
from prlhf.forum.tastes import DIMENSIONS, Taste, describe
from prlhf.progress import Progress

# Each pole of a dimension belongs to two tastes that are opposite in the other two dimensions.
TASTES = {
    Taste(length=1, order=1, tone=1): 0.4,
    Taste(length=-1, order=-1, tone=1): 0.3,
    Taste(length=-1, order=1, tone=-1): 0.2,
    Taste(length=1, order=-1, tone=-1): 0.1,
}
USERS, COMPARISONS = 1500, 8  # the paper's number of users; comparisons per user
EVAL_COMPARISONS = 500  # minimum number held out, over all seen users; each unseen user has twice as many
FEWEST = 2  # facts: a summary of one fact has no order
EVAL_USERS = 1350, 150  # maximum numbers of seen and unseen users with held-out comparisons


@data_set(
    "demo-crowd",
    uses="users comparisons noise reveal unseen_fraction",
    defaults={"users": USERS, "comparisons": COMPARISONS},
    bundled_base=True,
)
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Generate `config.comparisons` per seen user to train on, and held-out ones for seen and unseen users.

    Each seen user has one held-out comparison and each unseen user two, more if there are few users; if there are very
    many, some users have none.

    Raises:
        PrlhfError: `config.source` is given.
    """
    refuse_source(config)
    count, comparisons = config.users or USERS, config.comparisons or COMPARISONS
    tastes = draw_tastes(count, random.Random(f"{config.seed}-demo-crowd-users"))
    texts = describe_partly(tastes, config.reveal, random.Random(f"{config.seed}-demo-crowd-texts"))
    unseen = draw_unseen(list(tastes), config.unseen_fraction, f"{config.seed}-demo-crowd-unseen")
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
    """Draw a taste from the mixture for each of the users `1` to `users`."""
    drawn = rng.choices(list(TASTES), weights=list(TASTES.values()), k=users)
    return {str(number): taste for number, taste in enumerate(drawn, start=1)}


def describe_partly(tastes: Mapping[str, Taste], dimensions: int, rng: random.Random) -> dict[str, str]:
    """Return a line about each user with that many `dimensions` of the taste; "" for none."""
    given = {user: rng.sample(DIMENSIONS, dimensions) for user in tastes}
    parts = {user: [describe(taste.only(d)) for d in DIMENSIONS if d in given[user]] for user, taste in tastes.items()}
    return {user: " ".join(words) + "\n" if words else "" for user, words in parts.items()}


def _comparison(row_id: str, post: Post, user: str, taste: Taste, text: str, noise: float, rng: random.Random) -> Row:
    """A choice by a random dimension of the taste; with probability `noise` it is swapped."""
    dimension = rng.choice(DIMENSIONS)
    chosen, rejected = contrast(post, taste.only(dimension), FEWEST, rng)
    if rng.random() < noise:
        chosen, rejected = rejected, chosen
    return Row(row_id, post.prompt, chosen, rejected, user, text)
