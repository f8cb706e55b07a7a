"""UF-P-2 and UF-P-4 (VPL, arXiv 2408.10075): users who choose by one attribute each, from `openbmb/UltraFeedback`.

GPT-4 rated four responses to each prompt by helpfulness, honesty, instruction following and truthfulness. The best of
them by the mean rating is compared with a worse one, drawn at random. A user chooses the response that is rated higher
on their attribute, and does not choose between equal ones. Pairs about which no two users disagree are dropped.

Each held-out choice is also that of a new person with this attribute, who makes no other: `choices.jsonl` has their
choices between pairs of a pool that is not trained on, from which the attribute can be learned.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from prlhf.config import PrepConfig
from prlhf.data.data_sets import data_set
from prlhf.data.messages import as_conversation
from prlhf.data.rows import DropCounts, Dropped, LoadedData, Row, RowReader, check_left
from prlhf.data.splits import draw_pool, first_appearance, split_by_prompt
from prlhf.errors import PrlhfError
from prlhf.progress import Progress
from prlhf.source.folders import open_folder
from prlhf.source.hub import hub_parts
from prlhf.source.raw import RawRows
from prlhf.source.values import Malformed, any_text, column, kind, mapping, text

HUB = "openbmb/UltraFeedback"
INSTEAD = "run: prlhf prep ultrafeedback --source FOLDER --out data/ultrafeedback (FOLDER holds its .jsonl files)"
ATTRIBUTES = {
    "two": ("helpfulness", "honesty"),
    "four": ("helpfulness", "honesty", "instruction_following", "truthfulness"),
}
RATED = ATTRIBUTES["four"]
CONTAMINATED = "truthful_qa"  # prompts of a benchmark, which argilla's cleaned pairs and VPL leave out

BENCHMARK, UNRATED, AGREED = "prompt of TruthfulQA", "no worse response that is rated", "no disagreement"


@dataclass(frozen=True)
class RatedPair:
    """Two responses, and for each attribute on which they differ whether the first is rated higher."""

    id: str
    prompt: str
    responses: tuple[str, str]
    first: Mapping[str, bool]

    def choice(self, attribute: str, user: str, row_id: str) -> Row:
        """The choice by `attribute`, as one of `user`."""
        chosen, rejected = self.responses if self.first[attribute] else self.responses[::-1]
        return Row(row_id, *as_conversation(self.prompt, chosen, rejected), user_id=user)


@data_set("ultrafeedback", uses="users attributes eval_fraction shots bad_rows")
def load(config: PrepConfig, progress: Progress) -> LoadedData:
    """Read the ratings; the users are the attributes, or many users with one attribute each.

    Raises:
        PrlhfError: the data cannot be read, a row is refused, or too few comparisons are left.
    """
    attributes = ATTRIBUTES[config.attributes]
    each = _users_each(config.users, attributes)
    source, raw = _open(config.source)
    drops = DropCounts(BENCHMARK, UNRATED, AGREED)
    pairs = RowReader(config.bad_rows, drops, progress).read("all", raw, _converter(attributes, config.seed), "prompt")
    check_left(pairs, drops, source)
    by_all = [pair for pair in pairs if len(pair.first) == len(attributes)]
    pool = draw_pool(by_all, config.shots, f"{config.seed}-ultrafeedback-pool", source)
    taken = {pair.prompt for pair in pool}
    rows = [
        pair.choice(attribute, attribute, f"{pair.id}-{attribute}")
        for pair in pairs
        if pair.prompt not in taken
        for attribute in attributes
        if attribute in pair.first
    ]
    check_left(rows, drops, source)
    train, held_out = split_by_prompt(rows, config.eval_fraction, config.seed)
    new = [
        replace(row, id=f"{row.id}-new", user_id=f"{row.user_id}-new-{n}") for n, row in enumerate(held_out, start=1)
    ]
    rng = random.Random(f"{config.seed}-ultrafeedback-choices")
    choices = [
        pair.choice(row.user_id, person.user_id, f"{pair.id}-{person.user_id}")
        for row, person in zip(held_out, new, strict=True)
        for pair in rng.sample(pool, config.shots)
    ]
    train = _deal(train, each)
    return LoadedData(
        train=train,
        eval=[*_deal(held_out, each), *new],
        order=first_appearance(train),
        source=source,
        options=config.model_dump(include={"users", "attributes", "eval_fraction", "shots", "bad_rows"}),
        counts=drops.report(),
        notes={"pool": len(pool)},
        choices=choices,
    )


def _users_each(users: int | None, attributes: Sequence[str]) -> int:
    """The number of users with each attribute."""
    each, left = divmod(users or len(attributes), len(attributes))
    if left:
        why = f"users = {users} cannot be divided by the {len(attributes)} attributes"
        raise PrlhfError(why, f"set it to a multiple of {len(attributes)}")
    return each


def _deal(rows: Sequence[Row], each: int) -> list[Row]:
    """Deal the rows of each attribute out to `each` users; a single one is called as the attribute."""
    if each == 1:
        return list(rows)
    turns = Counter[str]()
    dealt = []
    for row in rows:
        dealt.append(replace(row, user_id=f"{row.user_id}-{1 + turns[row.user_id] % each}"))
        turns[row.user_id] += 1
    return dealt


# ---- from ratings to pairs ----


def _converter(attributes: Sequence[str], seed: int) -> Callable[[Any, int], RatedPair]:
    def convert(value: Any, number: int) -> RatedPair:
        row = mapping(value)
        prompt = text(column(row, "instruction"), "instruction")
        if row.get("source") == CONTAMINATED:
            raise Dropped(BENCHMARK)
        found = _rated(column(row, "completions"))
        best = max(found, key=_mean, default=None)
        worse = [one for one in found if best and _mean(one) < _mean(best)]
        if best is None or not worse:
            raise Dropped(UNRATED)
        other = random.Random(f"{seed}-ultrafeedback-pair-{number}").choice(worse)
        first = {name: best[1][name] > other[1][name] for name in attributes if best[1][name] != other[1][name]}
        if len(set(first.values())) < 2:
            raise Dropped(AGREED)
        return RatedPair(str(number), prompt, (best[0], other[0]), first)

    return convert


def _rated(completions: Any) -> list[tuple[str, dict[str, int]]]:
    """The responses that are rated on all of `RATED`, each with its ratings."""
    if not isinstance(completions, list):
        raise Malformed(f"'completions' is {kind(completions)}, not a list")
    found = []
    for value in completions:
        completion = mapping(value, "an item of 'completions'")
        said = any_text(column(completion, "response"), "completions.response").strip()
        given = mapping(column(completion, "annotations"), "'completions.annotations'")
        ratings = {name: rating for name in RATED if (rating := _rating(column(given, name))) is not None}
        if said and len(ratings) == len(RATED):
            found.append((said, ratings))
    return found


def _rating(annotation: Any) -> int | None:
    """The rating of an attribute, a whole number as text; None if there is none, such as `N/A`."""
    rating = annotation.get("Rating") if isinstance(annotation, Mapping) else None
    return int(rating) if isinstance(rating, str) and re.fullmatch(r"\s*[0-9]{1,2}\s*", rating) else None


def _mean(rated: tuple[str, dict[str, int]]) -> float:
    return mean(rated[1].values())


def _open(source: str | None) -> tuple[str, RawRows]:
    """The source for the manifest, and all rows."""
    if source is None:
        return HUB, hub_parts(HUB, {"all": "train"}, INSTEAD)["all"]
    folder = Path(source)
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "does not exist"
        raise PrlhfError(f"--source {source} {why}", "give the folder that holds the .jsonl files of UltraFeedback")
    splits = open_folder(folder, None)
    return source, splits["train"] if "train" in splits else next(iter(splits.values()))
