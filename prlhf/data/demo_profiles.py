"""Section 5.2 in miniature: six users of the synthetic forum, one for each pole of the three dimensions of taste.

As in P-SOUPS, a user compares summaries that differ in the user's own dimension only, and the profile in words
(`keep it very short.`) is known but hidden from the model. All six users compare the same held-out posts.
"""

from __future__ import annotations

import random

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.demo import forum_data, fresh_post, nested, refuse_source
from prlhf.data.rows import LoadedData, Row
from prlhf.forum.posts import MAX_FACTS, MIN_FACTS, Post, Style, choose_facts, draw_style, sentences
from prlhf.forum.tastes import Taste, describe
from prlhf.progress import Progress

PROFILES = {
    "short": Taste(length=-1),
    "long": Taste(length=1),
    "forward": Taste(order=1),
    "backward": Taste(order=-1),
    "warm": Taste(tone=1),
    "cold": Taste(tone=-1),
}
COMPARISONS, EVAL_POSTS = 300, 100


@data_set("demo-profiles", uses="comparisons", defaults={"comparisons": COMPARISONS}, bundled_base=True)
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Generate `config.comparisons` new posts per profile to train on, and 100 held-out posts that all compare.

    Raises:
        PrlhfError: `config.source` is given.
    """
    refuse_source(config)
    comparisons = config.comparisons or COMPARISONS
    rng, held_out_rng = (random.Random(f"{config.seed}-demo-profiles-{part}") for part in ("train", "eval"))
    known: set[str] = set()
    progress.start("writing posts", comparisons)
    train: list[Row] = []
    for _ in range(comparisons):
        for profile in PROFILES:
            train.append(_comparison(f"train-{len(train) + 1}", fresh_post(rng, known), profile, rng))
        progress.advance(1)
    progress.finish()
    posts = [fresh_post(held_out_rng, known) for _ in range(EVAL_POSTS)]
    held_out = [
        _comparison(f"eval-{number}-{profile}", post, profile, held_out_rng)
        for number, post in enumerate(posts, start=1)
        for profile in PROFILES
    ]
    preferences = {profile: describe(taste) for profile, taste in PROFILES.items()}
    return forum_data(train, held_out, list(PROFILES), {"comparisons": comparisons}, preferences=preferences)


def _comparison(row_id: str, post: Post, profile: str, rng: random.Random) -> Row:
    """A choice by the dimension of the profile."""
    chosen, rejected = contrast(post, PROFILES[profile], MIN_FACTS, rng)
    return Row(row_id, post.prompt, chosen, rejected, profile)


def contrast(post: Post, taste: Taste, fewest: int, rng: random.Random) -> tuple[str, str]:
    """Return (chosen, rejected), summaries of at least `fewest` facts that differ only in the one dimension of `taste`.

    If the dimension is length, the longer summary starts with the shorter one; otherwise both state the same facts.
    """
    style = draw_style(rng)
    if taste.length:
        shorter, longer = nested(post, style, fewest, rng)
        return (longer, shorter) if taste.length > 0 else (shorter, longer)
    count = rng.randint(max(fewest, 2) if taste.order else fewest, MAX_FACTS)  # one fact has no order
    facts = choose_facts(post, count, rng)
    both = (Style(count, pole * taste.order or style.order, pole * taste.tone or style.tone) for pole in (1, -1))
    chosen, rejected = ("".join(sentences(facts, style)) for style in both)
    return chosen, rejected
